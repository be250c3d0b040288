"""What `benchmarks.accelerator` measures, section by section: sizes, and the processes that measure them."""

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from benchmarks.peers.jax_gpt import Shape

OURS, TORCH = "benchmarks.on_device", "benchmarks.peers.torch_steps"
VOCABULARY, BYTES = 32_101, 256


@dataclass(frozen=True)
class Size:
    """A size of the ladder, with what a device of 80 GB wants.

    micro_batch, plain_micro_batch   sequences in memory at a time: ours; and the peers', which hold all logits
    seconds                          that compiling and a first step may take, at most
    """

    shape: Shape
    micro_batch: int
    plain_micro_batch: int
    seconds: float


SIZES = {
    "w1024_d12": Size(Shape(1024, 12, VOCABULARY, 256, 512, 64), 64, 64, 110),
    "w512_d3": Size(Shape(512, 3, VOCABULARY, 256, 512, 64), 256, 128, 60),
    "w2048_d24": Size(Shape(2048, 24, VOCABULARY, 256, 512, 64), 16, 16, 170),
    "w256_d3": Size(Shape(256, 3, VOCABULARY, 256, 512, 64), 256, 128, 60),
    "w768_d6": Size(Shape(768, 6, VOCABULARY, 256, 512, 64), 128, 64, 80),
}
"""The most telling first."""
SMALL = {
    "tokens_2x512": Shape(256, 3, VOCABULARY, 2, 512, 64),
    "bytes_16x512": Shape(256, 3, BYTES, 16, 512, 64),
}
PRODUCTS = [[8192, 8192, 8192], [16384, 4096, 4096], [32768, 1024, 4096], [32768, 2048, 8192]]
KERNEL_SIZES = [[32, 512, 16, 64], [8, 2048, 16, 64]]
REMEMBERED, AT_A_TIME = "w1024_d12", 32
"""The size whose memory is compared, and sequences in memory: so few that all attention weights find room."""
TINY = Shape(32, 2, 101, 8, 32, 16)


@dataclass(frozen=True)
class Task:
    """One measurement: a process."""

    section: str
    name: str
    module: str
    arguments: dict[str, Any]
    most_seconds: float = 60.0
    least_seconds: float = 20.0
    environment: dict[str, str] = field(default_factory=dict)


def values(pairs: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE words, the values as JSON where they are."""

    def value(text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text

    return {key: value(text) for key, text in (pair.split("=", 1) for pair in pairs)}


def peak(given: argparse.Namespace) -> Iterator[Task]:
    arguments = {"kind": "peak", "shapes": [[64, 64, 64]] if given.tiny else PRODUCTS, "seconds": given.measure}
    yield Task("peak", "jax", OURS, arguments)
    yield Task("peak", "torch", TORCH, arguments)


def mfu(given: argparse.Namespace) -> Iterator[Task]:
    for name in given.sizes:
        yield Task("mfu", f"ours_{name}", OURS, ours(given, name), SIZES[name].seconds + 4 * given.measure, 40)


def ours(given: argparse.Namespace, name: str) -> dict[str, Any]:
    """What our program at a size is asked for."""
    size = SIZES[name]
    micro_batch = values(given.micro_batch).get(name, size.micro_batch)
    return {
        "kind": "ours",
        "shape": TINY if given.tiny else size.shape,
        "compute": values(given.compute),
        "micro_batch": 4 if given.tiny else micro_batch,
        "seconds": given.measure,
        "trace": not given.no_trace,
    }


def lanes(given: argparse.Namespace) -> Iterator[Task]:
    for name in given.small:
        shape = SMALL[name]
        arguments = {
            "kind": "lanes",
            "shape": TINY if given.tiny else shape,
            "compute": values(given.compute),
            "lanes": given.lanes,
            "seconds": 2 * given.measure,
            "trace": not given.no_trace,
        }
        yield Task("lanes", f"ours_{name}", OURS, arguments, 150, 45)


def memory(given: argparse.Namespace) -> Iterator[Task]:
    shape, chunk = (TINY, 32) if given.tiny else (SIZES[REMEMBERED].shape, 4096)
    micro_batch = 4 if given.tiny else AT_A_TIME
    fused = "blockwise" if given.tiny else "cudnn"
    whole = micro_batch * shape.length
    for attention, head in ((fused, chunk), ("plain", whole), (fused, whole), ("plain", chunk)):
        compute = {"attention": attention, "head_chunk": head}
        arguments = {"kind": "step_memory", "shape": shape, "compute": compute, "micro_batch": micro_batch}
        name = f"{attention}_head_{'in_chunks' if head == chunk else 'whole'}"
        yield Task("memory", name, OURS, arguments, 90, 40, {"XLA_PYTHON_CLIENT_PREALLOCATE": "false"})


def peers(given: argparse.Namespace) -> Iterator[Task]:
    asked = values(given.peer_micro_batch)
    for name in given.peer_sizes:
        size = SIZES[name]
        micro_batch = 4 if given.tiny else asked.get(name, size.plain_micro_batch)
        yield from both_peers(given, name, size.shape, micro_batch, size.seconds)
        if name == REMEMBERED:  # the small batches before the other sizes
            for small in given.small:
                yield from both_peers(given, small, SMALL[small], SMALL[small].batch, 60)


def both_peers(given: argparse.Namespace, name: str, shape: Shape, micro_batch: int, seconds: float) -> Iterator[Task]:
    """A shape by PyTorch and by plain JAX."""
    if given.tiny:
        shape, micro_batch = TINY, 4
    arguments: dict[str, Any] = {"shape": shape, "micro_batch": micro_batch, "seconds": given.measure}
    torch = {"kind": "steps", "compiled": not given.tiny, "mode": given.torch_mode}
    jax = {"kind": "plain_jax", "attention": "xla" if given.tiny else given.peer_attention}
    yield Task("peers", f"torch_{name}", TORCH, arguments | torch, seconds, 30)
    yield Task("peers", f"jax_{name}", OURS, arguments | jax, seconds, 30)


def attention(given: argparse.Namespace) -> Iterator[Task]:
    sizes = [[2, 64, 2, 16]] if given.tiny else KERNEL_SIZES
    arguments = {"kind": "attention", "sizes": sizes, "seconds": given.measure / 5, "tiny": given.tiny}
    yield Task("attention", "jax", OURS, arguments)
    yield Task("attention", "torch", TORCH, arguments, 40)


SECTIONS: dict[str, Callable[[argparse.Namespace], Iterator[Task]]] = {
    "peak": peak,
    "mfu": mfu,
    "lanes": lanes,
    "memory": memory,
    "peers": peers,
    "attention": attention,
}
