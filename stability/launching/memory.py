"""What a program needs of its device's memory, estimated before it is compiled, and how much there is.

The estimate counts arrays, so it takes microseconds and knows what it consists of. Once a program is compiled its own
analysis decides. Letters: B batch, T time, S = B x T positions, D width, F MLP hidden, H heads, V vocabulary, N blocks,
P parameters, R lanes. All sizes are bytes.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax

from stability.config import RunConfig
from stability.model.kernels import MOST_BLOCKS, TILE, chosen_kernel
from stability.model.transformer import scans_blocks
from stability.training.lanes import STEPS_PER_DISPATCH, Program
from stability.training.loss import chunk_size

FLOAT32 = 4
USABLE = {"cpu": 0.8, "accelerator": 0.95}
"""Share of the memory found that programs may fill: on a CPU others use it too, elsewhere some is lost in fragments."""


def parameter_count(config: RunConfig) -> int:
    """All trained numbers: 2 V D + N (4 D^2 + 2 ratio D^2 + norms) + D; what a config leaves out is not counted.

    Args:
        config: resolved.
    """
    model, vocabulary = config.model, config.data.vocabulary_size
    assert vocabulary is not None, "resolve(config) fills in the vocabulary before anything is planned"
    block = 0
    if model.attention != "none":
        size = {"none": 0, "per_head": model.head_dim, "whole_width": model.width}[model.qk_layernorm]
        block += model.width + 4 * model.width**2 + 2 * size
    if model.mlp != "none":
        block += model.width + 2 * model.mlp_ratio * model.width**2
    return 2 * vocabulary * model.width + model.depth * block + model.width


def state_bytes(config: RunConfig) -> int:
    """A run's train state: parameters and Adam's two moments in float32, two counters, and whether it is alive."""
    return 3 * FLOAT32 * parameter_count(config) + 2 * 4 + 1


STREAMS, LOGITS = 5.0, 2.0
ATTENTION_STREAMS, ATTENTION_WEIGHTS, QK_STREAMS = 3.0, 4.5, 9.0
MLP_STREAMS, MLP_HIDDENS = 1.5, 3.5
STATES = 5.2
"""How many arrays of each kind a step holds at its fullest: fitted to what XLA reports for 28 structures on a CPU."""
ACCUMULATED = 1.0
"""Sums of gradients beside those of a micro-batch, in parameters."""
SCANNED = 1.85
"""How many times what blocks keep it takes on a GPU to stack it: seen once, for 12 blocks on an H100."""
SCANNED_STATES, FILLED, HIDDENS = 5.6, 4.0, 1.0
"""Of TPUs: what a loop over blocks holds beside what they keep, in parameters; queries, keys, values and their mixture,
which `splash` holds with each head filled up to `TILE`; float32 arrays of an MLP's hidden layer. With them the estimate
is 0.88 to 1.26 times what six programs need (benchmarks/results/2026-11-26_tpu_programs.json)."""


def activation_bytes(config: RunConfig) -> int:
    """The most that one lane's step holds beside its state and batches: `max(a, u)`.

    At the end of a micro-batch's forward pass (B, and S, are the micro-batch's) it is what backpropagation reads,

        a = c (STREAMS S D + N (ATTENTION_STREAMS S D + QK_STREAMS S D + MLP_STREAMS S D + MLP_HIDDENS S F)
               + LOGITS C V + n ATTENTION_WEIGHTS B H T^2),

    QK_STREAMS once for qk-layernorm and once for kappa, FILLED with `splash` for the zeros that it adds to heads, a
    sublayer's terms only where the config has it. Where blocks are rematerialised N counts one stream a block, and one
    block whole; without their intermediate arrays blocks count half; a loop over blocks stacks what they keep (SCANNED
    on GPUs, SCANNED_STATES P on TPUs). TPUs add HIDDENS S F. C are the positions whose logits are there at a time.
    Attention weights are those of all blocks (n = N) with the plain kernel, of one in `MOST_BLOCKS` parts with
    `blockwise`, and none where attention is fused. At the end of the update it is gradients, updates, and new
    parameters and moments beside the old: u = 4 STATES P. Each phase uses the other's memory again. Logits and
    attention weights are float32 in every precision (c = 4); XLA on a CPU holds everything as float32, elsewhere
    bfloat16 streams count 2 bytes.

    Args:
        config: resolved.
    """
    model, training = config.model, config.training
    positions = config.micro_batch * training.sequence_length
    stream, block = positions * model.width, 0.0
    if model.attention != "none":
        block += ATTENTION_STREAMS + QK_STREAMS * ((model.qk_layernorm != "none") + (model.kappa is not None))
        if chosen_kernel(config) == "splash":
            block += FILLED * (-model.head_dim % TILE) / model.head_dim
    if model.mlp != "none":
        block += MLP_STREAMS + MLP_HIDDENS * model.mlp_ratio
    number = 2 if training.precision == "bfloat16" and jax.default_backend() != "cpu" else FLOAT32
    blocks = {"none": model.depth * block, "all_but_products": (model.depth / 2 + 1) * block}
    on_tpu = jax.default_backend() == "tpu"
    stacked = SCANNED if scans_blocks(config) and jax.default_backend() == "gpu" else 1.0
    blocks_kept = stacked * blocks.get(_rematerialised(config), model.depth + block)
    kept = number * stream * (STREAMS + blocks_kept)
    kept += FLOAT32 * HIDDENS * stream * model.mlp_ratio * (on_tpu and model.mlp != "none")
    kept += FLOAT32 * LOGITS * chunk_size(config, positions) * (config.data.vocabulary_size or 0)
    kept += (
        FLOAT32 * ATTENTION_WEIGHTS * _blocks_of_weights(config) * positions * training.sequence_length * model.heads
    )
    states = ACCUMULATED * (config.micro_batch < training.batch_size)
    states += SCANNED_STATES * (on_tpu and scans_blocks(config))
    parameters = FLOAT32 * parameter_count(config)
    return round(max(kept + states * parameters, STATES * parameters))


def _rematerialised(config: RunConfig) -> str:
    """What is computed again: XLA for CPUs joins it with the first time, unless a loop over blocks keeps them apart."""
    undone = jax.default_backend() == "cpu" and not scans_blocks(config)
    return "none" if undone else config.compute.rematerialise


def _blocks_of_weights(config: RunConfig) -> float:
    """Of how many blocks a step holds all attention weights."""
    if config.model.attention == "none":
        return 0.0
    whole = 1 if _rematerialised(config) == "blocks" else config.model.depth
    return {"plain": whole, "blockwise": 1 / MOST_BLOCKS}.get(chosen_kernel(config), 0.0)


def program_bytes(config: RunConfig, lanes: int, places: int = 1, data: int = 1, fsdp: int = 1) -> int:
    """What one device needs while `lanes` runs of a structure train together, `lanes / places` of them at each place.

    State, batches of a dispatch (the next one is there before the last is done), validation text, and the larger of
    what a step holds and what resuming does: each lane's checkpoint before all are stacked.

    Args:
        config: resolved; any of the structure.
        lanes: how many runs train together, at least 1.
        places: over how many places, of data x fsdp devices each, the lanes are spread.
        data: devices that divide a lane's batch among them.
        fsdp: devices that divide a lane's state and batch among them.
    """
    here = -(-lanes // places)
    training = config.training
    row = 4 * (training.sequence_length + 1)
    batches = 2 * STEPS_PER_DISPATCH * training.batch_size * row
    state, activations = state_bytes(config) / fsdp, activation_bytes(config) / (data * fsdp)
    lane = round(state + batches / (data * fsdp) + max(activations, 2 * state))
    return here * lane + training.validation_sequences * row


def with_fitted_micro_batch(config: RunConfig, limit: float, data: int = 1, fsdp: int = 1) -> RunConfig:
    """The config with a number in the place of `compute.micro_batch=auto`: as many sequences as one lane may hold.

    Args:
        config: resolved.
        limit: bytes on each device.
        data: devices that divide a lane's batch among them; as many sequences at least.
        fsdp: devices that divide a lane's state and batch among them; likewise.
    """
    if config.compute.micro_batch != "auto":
        return config
    batch = config.training.batch_size
    sizes = [size for size in range(batch, 0, -1) if batch % size == 0 and size % (data * fsdp) == 0] or [batch]
    choices = [replace(config, compute=replace(config.compute, micro_batch=size)) for size in sizes]
    return next((one for one in choices if program_bytes(one, 1, 1, data, fsdp) <= limit), choices[-1])


def compiled_bytes(program: Program) -> int | None:
    """What one device needs for a compiled program, by the program's own analysis; None where there is none.

    The largest of its functions: arguments, results that take no argument's place, and temporary memory.
    """
    sizes = [_function_bytes(function) for function in (program.start, program.advance, program.evaluate)]
    return None if None in sizes else max(size for size in sizes if size is not None)


def _function_bytes(function: Any) -> int | None:
    analysis = function.memory_analysis()
    if analysis is None:
        return None
    new = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return int(analysis.argument_size_in_bytes + new + analysis.temp_size_in_bytes)


def lanes_that_fit(config: RunConfig, limit: int, places: int = 1, data: int = 1, fsdp: int = 1) -> int:
    """How many lanes of a structure fit into `limit` bytes on each device, by the estimate; 0 if not even one does.

    Places and devices as for `program_bytes`.
    """
    one = program_bytes(config, 1, 1, data, fsdp)
    each = program_bytes(config, 2, 1, data, fsdp) - one
    return max(0, (limit - one) // each + 1) * places


@dataclass(frozen=True)
class Budget:
    """How many bytes programs may take on each device, and how that came to be known."""

    limit: int
    basis: str
    asked: bool = False

    def __str__(self) -> str:
        return f"{amount(self.limit)}: {self.basis}"


def find_budget(asked: int | None) -> Budget:
    """The memory that there is on each device, or what the user allows.

    On an accelerator what its allocator may hand out; on a CPU what the system could give now, or the process's control
    group (a container, a Slurm job) if that allows less.
    """
    if asked is not None:
        return Budget(asked, "as asked", asked=True)
    device = jax.local_devices()[0]
    if device.platform == "cpu":
        share, found = USABLE["cpu"], host_memory()
        return Budget(round(share * found), f"{share:.0%} of the {amount(found)} of memory that are free here")
    share, found = USABLE["accelerator"], min(_device_memory(one) for one in jax.local_devices())
    return Budget(round(share * found), f"{share:.0%} of the {amount(found)} of each device")


def _device_memory(device: jax.Device) -> int:
    statistics = device.memory_stats() or {}
    return int(statistics.get("bytes_limit", 0)) or host_memory()  # a device without statistics shares the host's


PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def host_memory() -> int:
    """Bytes that new arrays can take on this machine: what is available, within the limits of the control groups."""
    return min([_available(), *_control_groups()])


def _available() -> int:
    try:
        lines = (PROC / "meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _control_groups() -> list[int]:
    """What each control group of this process, of version 2 or 1, still allows; page cache can be given back."""
    try:
        entries = [line.split(":", 2) for line in (PROC / "self" / "cgroup").read_text().splitlines()]
    except OSError:
        return []
    found = []
    for _, controllers, path in entries:
        if controllers not in ("", "memory"):
            continue
        root, most, used, cache = (
            (CGROUPS, "memory.max", "memory.current", "inactive_file")
            if controllers == ""
            else (CGROUPS / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        )
        # Seen from inside a container the path may not exist; the container's own group is then the root.
        for group in [root, *_below(root, path)]:
            try:
                limit, now = int((group / most).read_text()), int((group / used).read_text())
                statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # not there, or `max`: no limit
                continue
            found.append(max(0, limit - now + int(statistics.get(cache, 0))))
    return found


def _below(root: Path, path: str) -> list[Path]:
    """Every group from just below the root down to a path."""
    parts = [part for part in path.split("/") if part and part != ".."]
    return [root.joinpath(*parts[: i + 1]) for i in range(len(parts))]


def amount(count: float) -> str:
    """A number of bytes to three digits: 1.18 MB, 58.1 GB."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
