"""GPUs described for XLA's compiler, which reads from it what fits into a block and how fast memory is.

Numbers are the maker's (NVIDIA H100 Tensor Core GPU architecture; CUDA programming guide, compute capability 9.0).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Card:
    """An NVIDIA GPU.

    name                         as the driver calls it
    capability                   compute capability, major and minor
    cores                        streaming multiprocessors
    memory, cache                bytes of memory, and of the cache before it
    bandwidth                    of the memory, bytes a second
    clock                        GHz
    shared, shared_optin         bytes of shared memory of a block: without asking, and at most
    shared_of_core               bytes of shared memory of a multiprocessor
    product_rate                 FLOP/s of bfloat16 products, as measured where a result says so
    cudnn                        version of cuDNN that the programs are compiled for
    """

    name: str
    capability: tuple[int, int]
    cores: int
    memory: int
    cache: int
    bandwidth: float
    clock: float
    shared: int
    shared_optin: int
    shared_of_core: int
    product_rate: float
    cudnn: tuple[int, int, int] = (9, 19, 0)

    def described(self) -> str:
        """The card as a `GpuTargetConfigProto`, as text."""
        major, minor = self.capability
        cudnn = dict(zip(("major", "minor", "patch"), self.cudnn, strict=True))
        return f"""
            platform_name: "CUDA"
            device_description_str: "{self.name}"
            dnn_version_info {{ {" ".join(f"{name}: {value}" for name, value in cudnn.items())} }}
            gpu_device_info {{
              name: "{self.name}" device_vendor: "NVIDIA Corporation"
              cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: ACCELERATED_FEATURES }}
              core_count: {self.cores} fpus_per_core: 128 clock_rate_ghz: {self.clock}
              threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
              thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
              block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
              registers_per_core_limit: 65536 registers_per_block_limit: 65536
              shared_memory_per_block: {self.shared} shared_memory_per_block_optin: {self.shared_optin}
              shared_memory_per_core: {self.shared_of_core}
              memory_bandwidth: {self.bandwidth:.0f} device_memory_size: {self.memory} l2_cache_size: {self.cache}
              device_address_bits: 64 pcie_bandwidth: 34359738368 ecc_enabled: true
              driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
              dnn_version: "{".".join(map(str, self.cudnn))}"
            }}
        """


H100 = Card(
    name="NVIDIA H100 80GB HBM3",
    capability=(9, 0),
    cores=132,
    memory=81_559 * 2**20,
    cache=50 * 2**20,
    bandwidth=3.35e12,
    clock=1.98,
    shared=48 * 2**10,
    shared_optin=227 * 2**10,
    shared_of_core=228 * 2**10,
    product_rate=733e12,  # benchmarks/results/2026-11-26_accelerator_h100.json
)
CARDS = {"h100": H100}
