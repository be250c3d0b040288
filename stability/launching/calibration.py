"""How fast this machine is: measured once on small programs, kept in the user's cache folder, used to foretell time.

A step takes  overhead + FLOPs / rate + bytes / bandwidth,  FLOPs and bytes (of what the step keeps) as the plan
estimates them; a program takes so long to compile, more with every block. The coefficients, none negative, fit a
few real structures, and no step is foretold faster than matrix products run here.
"""

import dataclasses
import hashlib
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import jax
import numpy as np

from stability.cache import cache_folder
from stability.config import RunConfig, resolve
from stability.errors import InputError
from stability.launching.compilation_cache import processor
from stability.launching.devices import choose_layout
from stability.launching.memory import activation_bytes
from stability.launching.plan import flops_per_token
from stability.launching.provenance import device_description
from stability.launching.settings import MeshSettings
from stability.tracking.files import SCHEMA_VERSION, read_json, write_json
from stability.training.lanes import STEPS_PER_DISPATCH, Program, compile_program
from stability.typed import from_mapping

VERSION = 2
"""Of the file and of what is measured: a calibration by another one is not found."""
VOCABULARY = 256

Shape = tuple[int, int, int, int]
"""Width, depth, sequences in a batch, sequence length."""
SHAPES: dict[str, tuple[Shape, ...]] = {
    "cpu": ((32, 1, 8, 32), (32, 2, 16, 64), (64, 2, 16, 64), (128, 3, 16, 64), (64, 1, 16, 256)),
    "accelerator": ((64, 2, 16, 64), (128, 2, 64, 128), (256, 3, 64, 256), (512, 4, 64, 256), (1024, 3, 64, 256)),
}
"""What is measured: small enough to take seconds, far enough apart to tell the terms from one another."""


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What a machine does, as a file holds it.

    Attributes:
        date: when it was measured.
        device: on what.
        matmul_flops: precision -> best rate of square matrix products, FLOP/s.
        seconds_per_step: of a step of no size.
        seconds_per_flop: in float32; other precisions in proportion to their `matmul_flops`.
        seconds_per_byte: of what a step keeps (`activation_bytes`).
        compile_seconds: of a program without blocks.
        compile_seconds_per_block: what each block adds.
        start_seconds: from one run to the next: record, journal, fresh state.
        largest_error: of the fit over what was measured, as a fraction of a step's time.
        others: how many processes ran beside the measurement, by the load average before it.
    """

    date: str
    device: str
    matmul_flops: dict[str, float]
    seconds_per_step: float
    seconds_per_flop: float
    seconds_per_byte: float
    compile_seconds: float
    compile_seconds_per_block: float
    start_seconds: float
    largest_error: float
    others: float = 0.0

    def step_seconds(self, config: RunConfig, lanes: int = 1) -> float:
        """One step of `lanes` runs at once."""
        training = config.training
        flops = flops_per_token(config) * training.tokens_per_step
        slower = self.matmul_flops["float32"] / self.matmul_flops[training.precision]
        each = flops * self.seconds_per_flop * slower + activation_bytes(config) * self.seconds_per_byte
        return self.seconds_per_step + lanes * each

    def run_seconds(self, config: RunConfig, lanes: int = 1) -> float:
        """The whole training of `lanes` runs at once, validation included: a third of a step for as many tokens."""
        training = config.training
        looks = 1 + -(-training.steps // training.evaluate_every) if training.evaluate_every else 2
        steps = training.steps + looks * training.validation_sequences / training.batch_size / 3
        return lanes * self.start_seconds + steps * self.step_seconds(config, lanes)

    def program_seconds(self, config: RunConfig) -> float:
        """Compiling one program."""
        return self.compile_seconds + self.compile_seconds_per_block * config.model.depth


def calibration_path() -> Path:
    """Where this machine's calibration is kept: apart by processor, cores, devices and the version of JAX."""
    devices = ",".join(f"{device.platform}:{device.device_kind}" for device in jax.local_devices())
    known = [str(VERSION), processor(), device_description(), devices, jax.__version__]
    return cache_folder() / f"calibration_{hashlib.sha256('|'.join(known).encode()).hexdigest()[:16]}.json"


def known_calibration() -> Calibration | None:
    """The calibration of this machine, None where there is none that can be read."""
    try:
        return from_mapping(Calibration, read_json(calibration_path())["calibration"])
    except (OSError, KeyError, InputError):
        return None


def keep(found: Calibration) -> None:
    """Write this machine's calibration where `known_calibration` looks, if the cache folder can be written."""
    path = calibration_path()
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"schema_version": SCHEMA_VERSION, "calibration": asdict(found)})


def calibrate() -> Calibration:
    """Measure this machine and keep the result, where the cache folder can be written."""
    kind = "cpu" if jax.default_backend() == "cpu" else "accelerator"
    others = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    with compiling_anew():
        subjects = [_measured(shape) for shape in SHAPES[kind]]
    peaks = {precision: matmul_flops(precision) for precision in ("float32", "bfloat16")}
    found = dataclasses.replace(fit(subjects, peaks, device_description()), others=round(others, 1))
    keep(found)
    return found


@dataclass(frozen=True)
class Measured:
    """One structure: what a step of `lanes` runs at once, and its program's compilation, took."""

    config: RunConfig
    step_seconds: float
    compile_seconds: float
    lanes: int = 1


def fit(subjects: Sequence[Measured], peaks: dict[str, float], device: str) -> Calibration:
    """The calibration by non-negative least squares of relative errors.

    Each FLOP takes at least 1 / peak; the fit says how much more.
    """
    took = np.array([one.step_seconds for one in subjects])
    tokens = [one.lanes * one.config.training.tokens_per_step for one in subjects]
    flops = np.array([flops_per_token(one.config) * count for one, count in zip(subjects, tokens, strict=True)])
    kept = np.array([one.lanes * activation_bytes(one.config) for one in subjects], dtype=float)
    least = 1 / peaks["float32"]
    terms = np.stack([np.ones_like(took), flops, kept], axis=1)
    (step, more, byte), _ = _relative(terms, np.maximum(took - flops * least, 0.0), took)
    compiled = np.array([one.compile_seconds for one in subjects])
    depths = np.array([one.config.model.depth for one in subjects], dtype=float)
    (program, block), _ = _relative(np.stack([np.ones_like(depths), depths], axis=1), compiled, compiled)
    errors = terms @ [step, more + least, byte] / took - 1
    return Calibration(
        date=date.today().isoformat(),
        device=device,
        matmul_flops=peaks,
        seconds_per_step=float(step),
        seconds_per_flop=float(more + least),
        seconds_per_byte=float(byte),
        compile_seconds=float(program),
        compile_seconds_per_block=float(block),
        start_seconds=START_SECONDS,
        largest_error=float(np.max(np.abs(errors))),
    )


START_SECONDS = 0.05
"""What a run costs beside its steps on the machine that this was written on: opening its record, closing it."""


def _relative(terms: Any, wanted: Any, scale: Any) -> Any:
    """Non-negative coefficients of the terms whose sum is nearest to `wanted`, errors counted as shares of `scale`.

    Columns are brought to one size first: FLOPs and seconds are twelve orders apart.
    """
    weighted = terms / scale[:, None]
    size = np.maximum(np.linalg.norm(weighted, axis=0), 1e-300)
    from scipy.optimize import nnls  # here: it takes a while to import

    found, rest = nnls(weighted / size, wanted / scale)
    return found / size, rest


def _measured(shape: Shape) -> Measured:
    """Compile a structure as `lanes=auto` would lay it, a run at each place, and time its steps."""
    config = calibration_config(shape)
    layout = choose_layout("auto", MeshSettings(), runs=jax.local_device_count())
    validation = (1, config.training.batch_size, config.training.sequence_length + 1)
    program = compile_program(config, layout.seats(layout.places), validation, layout.mesh(layout.places))
    return Measured(config, timed(program, config, layout.places), program.compile_seconds, layout.places)


def calibration_config(shape: Shape) -> RunConfig:
    """The structure of a shape, all else as by default."""
    width, depth, batch, length = shape
    model = {"width": width, "depth": depth, "head_dim": min(64, width // 2)}
    training = {"batch_size": batch, "sequence_length": length}
    config = from_mapping(RunConfig, {"model": model, "training": training})
    return resolve(config, corpus="calibration", vocabulary_size=VOCABULARY)


def timed(program: Program, config: RunConfig, lanes: int = 1, dispatches: int = 8) -> float:
    """Seconds of a step of all lanes: the median over dispatches whose last step is observed, as by default."""
    training = config.training
    shape = (lanes, STEPS_PER_DISPATCH, training.batch_size, training.sequence_length + 1)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, shape, np.int32)
    placed = program.place([config] * lanes)
    state = program.start(placed)
    took = []
    for _ in range(dispatches + 1):
        began = time.perf_counter()
        state, metrics, observations = program.step(placed, state, tokens, STEPS_PER_DISPATCH, True)
        _wait((state, metrics, observations))
        took.append((time.perf_counter() - began) / STEPS_PER_DISPATCH)
    return statistics.median(took[1:])  # the first one warms up


def matmul_flops(precision: str, sizes: Sequence[int] = (512, 1024, 2048), repeats: int = 8) -> float:
    """The machine's best rate in FLOP/s, over square products of these sizes."""
    best = 0.0
    with jax.default_matmul_precision("highest" if precision == "float32" else None):
        product = jax.jit(lambda a, b: a @ b)
        for size in sizes:
            a = jax.numpy.asarray(np.random.default_rng(0).standard_normal((size, size)), precision)
            _wait(product(a, a))
            for _ in range(repeats):
                began = time.perf_counter()
                _wait(product(a, a))
                best = max(best, 2 * size**3 / (time.perf_counter() - began))
    return best


def _wait(arrays: Any) -> None:
    jax.block_until_ready(arrays)  # type: ignore[no-untyped-call]


@contextmanager
def compiling_anew() -> Iterator[None]:
    """Compile without the cache of compiled programs: what it takes to load one is not what it takes to make one."""
    from jax.experimental.compilation_cache import compilation_cache

    settings: Any = jax.config
    before = settings.jax_enable_compilation_cache
    settings.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()  # JAX looks at the setting once
    try:
        yield
    finally:
        settings.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()
