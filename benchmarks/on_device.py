"""One measurement of `benchmarks.accelerator` in JAX, in a process of its own, so that its memory is free afterwards.

    python -m benchmarks.on_device TASK

TASK is JSON: `kind` is a name of `KINDS`, the rest what that function takes. Results are printed as they come, each a
line `RESULT {...}`, so that a process that is stopped has not measured in vain. Times are of calls that have been
waited for, after a first one.
"""

import dataclasses
import functools
import gc
import importlib.metadata
import importlib.util
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.peers import jax_gpt

RESULT = "RESULT "
BLOCK = 0.4
"""Seconds that one timed block should take: long against a call's overhead, short enough for several."""
WATCHED = 10
"""Of so many steps one is observed."""
Arms = dict[str, Callable[[], Any]]


def emit(**facts: Any) -> None:
    """Tell the process that waits."""
    print(RESULT + json.dumps(facts), flush=True)


def interleaved(arms: Arms, seconds: float, least: int = 3, most: int = 30) -> dict[str, list[float]]:
    """Seconds of each call of each arm, the arms in turn, until `seconds` have passed."""
    took: dict[str, list[float]] = {name: [] for name in arms}
    began = time.perf_counter()
    for turn in range(most):
        if turn >= least and time.perf_counter() - began > seconds:
            break
        for name, call in arms.items():
            start = time.perf_counter()
            jax.block_until_ready(call())
            took[name].append(time.perf_counter() - start)
    return took


def spread(seconds: list[float]) -> dict[str, Any]:
    """Median and extremes, in milliseconds."""
    numbers = {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
    return {f"ms_{name}": round(value * 1e3, 4) for name, value in numbers.items()} | {"blocks": len(seconds)}


def made_with() -> dict[str, Any]:
    """Device and versions."""
    names = ("jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "flax", "optax", "numpy", "tokamax")
    versions = {}
    for name in names:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    devices = jax.local_devices()
    return {
        "device": f"{len(devices)} x {devices[0].device_kind}",
        "platform": devices[0].client.platform_version,
        "versions": {"python": sys.version.split()[0], **versions},
    }


def on_gpu() -> bool:
    return jax.default_backend() == "gpu"


def memory(program: Any = None) -> dict[str, Any]:
    """Peak of this process so far, and what a compiled function says of itself; MB."""
    stats = jax.local_devices()[0].memory_stats() or {}
    found = {name: stats[name] for name in ("peak_bytes_in_use", "bytes_limit") if name in stats}
    if program is not None and (analysis := program.memory_analysis()) is not None:
        for name in ("argument", "output", "alias", "temp"):
            found[f"compiled_{name}"] = getattr(analysis, f"{name}_size_in_bytes")
        new = found["compiled_output"] - found["compiled_alias"]
        found["compiled_total"] = found["compiled_argument"] + new + found["compiled_temp"]
    return {f"{name}_mb": round(value / 1e6, 1) for name, value in found.items()}


def is_out_of_memory(error: BaseException) -> bool:
    return "RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower()


def halving(micro_batch: int, attempt: Callable[[int], Any]) -> Any:
    """What `attempt` returns for the largest of a micro-batch, its half, its quarter ... that fits into memory."""
    while True:
        try:
            return attempt(micro_batch)
        except RuntimeError as error:
            if not is_out_of_memory(error) or micro_batch == 1:
                raise
        emit(out_of_memory_at_micro_batch=micro_batch)
        micro_batch //= 2
        gc.collect()


def run_config(shape: jax_gpt.Shape, compute: Mapping[str, Any] | None = None, precision: str = "bfloat16") -> Any:
    """The shape as a run's config of the paper's ladder; `compute` are the keys of that group that this run sets."""
    from stability.config import RunConfig, resolve
    from stability.typed import from_mapping

    model = {"width": shape.width, "depth": shape.depth, "head_dim": shape.head_dim}
    training = {"batch_size": shape.batch, "sequence_length": shape.length, "steps": 100_000, "precision": precision}
    mapping: dict[str, Any] = {"model": model, "training": training, "optimizer": {"learning_rate": 1e-3}}
    mapping["compute"] = dict(compute or {})
    return resolve(from_mapping(RunConfig, mapping), corpus="benchmark", vocabulary_size=shape.vocabulary)


def tokens_of(shape: jax_gpt.Shape, steps: int, lanes: int = 1) -> Any:
    """[R, C, B, T+1] random tokens."""
    size = (lanes, steps, shape.batch, shape.length + 1)
    return np.random.default_rng(0).integers(0, shape.vocabulary, size, np.int32)


class Ours:
    """L lanes of our program (None is the solo program), compiled and running."""

    def __init__(self, shape: jax_gpt.Shape, compute: Mapping[str, Any], lanes: int | None = None) -> None:
        from stability.training.lanes import STEPS_PER_DISPATCH, compile_program

        config = run_config(shape, compute)
        self.lanes = lanes or 1
        self.program = compile_program(config, lanes, (1, min(shape.batch, 16), shape.length + 1))
        self.placed = self.program.place([dataclasses.replace(config, seed=seed) for seed in range(self.lanes)])
        self.state = self.program.start(self.placed)
        self.tokens = tokens_of(shape, STEPS_PER_DISPATCH, self.lanes)
        self.last: Any = None

    def steps(self, count: int, observe: bool = False, dispatches: int = 1) -> Any:
        """Dispatches, not waited for."""
        for _ in range(dispatches):
            self.state, *self.last = self.program.step(self.placed, self.state, self.tokens, count, observe)
        return self.state, self.last

    def pace(self) -> tuple[int, int, float]:
        """Steps of a dispatch, dispatches of a block, and seconds of a step; both kinds of step have run once."""
        for observe in (True, False):
            jax.block_until_ready(self.steps(1, observe))
        began = time.perf_counter()
        jax.block_until_ready(self.steps(1))
        second = time.perf_counter() - began
        count = WATCHED if WATCHED * second < 5 * BLOCK else 1
        return count, max(1, round(BLOCK / (count * second))), second

    def health(self) -> dict[str, Any]:
        """Whether the training was one: numbers that are not finite may be faster."""
        metrics = self.last[0]
        return {
            "loss": [round(float(x), 3) for x in np.asarray(metrics.loss).reshape(-1)[:1]],
            "alive": bool(np.asarray(self.state.alive).all()),
        }


def peak(shapes: list[list[int]], seconds: float) -> None:
    """Rate of bfloat16 matrix products [m, k] x [k, n], and bytes moved by a copy; whether cuDNN's attention works."""
    emit(cudnn_fails=why_cudnn_fails())
    multiply = jax.jit(lambda a, b: a @ b)
    for m, k, n in shapes:
        a = jax.random.normal(jax.random.key(0), (m, k), jnp.bfloat16)
        b = jax.random.normal(jax.random.key(1), (k, n), jnp.bfloat16)
        jax.block_until_ready(multiply(a, b))
        took = repeated(functools.partial(multiply, a, b), seconds / len(shapes))
        rate = 2 * m * k * n / statistics.median(took)
        emit(**{f"matmul_{m}x{k}x{n}": {"tflops": round(rate / 1e12, 3), **spread(took)}})
    size = 1 << (28 if on_gpu() else 20)
    x = jnp.ones(size, jnp.float32)
    double = jax.jit(lambda x: x * 2)
    jax.block_until_ready(double(x))
    took = repeated(lambda: double(x), seconds / len(shapes))
    emit(copy_gb_a_second=round(8 * size / statistics.median(took) / 1e9, 1))


def why_cudnn_fails() -> str | None:
    """What comes of cuDNN's attention, forward and backward, where it does not work."""
    arrays = [jnp.ones((2, 128, 2, 64), jnp.bfloat16)] * 3
    try:
        both = jax.jit(forward_and_backward(functools.partial(jax_gpt.attend, attention="cudnn")))
        jax.block_until_ready(both(*arrays))
    except Exception as error:  # whatever it is, others than this kernel are then measured
        return f"{type(error).__name__}: {error}"[:600]
    return None


def repeated(call: Callable[[], Any], seconds: float) -> list[float]:
    """Seconds of a call, in blocks of so many that a block takes a while."""
    began = time.perf_counter()
    jax.block_until_ready(call())
    repeats = max(1, min(500, round(BLOCK / 4 / (time.perf_counter() - began))))

    def block() -> Any:
        result = None
        for _ in range(repeats):
            result = call()
        return result

    return [took / repeats for took in interleaved({"": block}, seconds, most=20)[""]]


def ours(shape: list[int], compute: dict[str, Any], micro_batch: int, seconds: float, trace: bool) -> None:
    """Our solo program: a step's time, quiet and with every tenth observed; compile time and memory."""
    here = jax_gpt.Shape(*shape)

    def attempt(micro_batch: int) -> tuple[Ours, int, int, float]:
        subject = Ours(here, compute | {"micro_batch": micro_batch})
        facts = {"compile_seconds": round(subject.program.compile_seconds, 1), "micro_batch": micro_batch}
        emit(**facts, **memory(subject.program.advance))
        return subject, *subject.pace()

    subject, count, dispatches, second = halving(micro_batch, attempt)
    emit(first_ms_a_step=round(second * 1e3, 3), steps_a_dispatch=count, dispatches_a_block=dispatches)
    arms: Arms = {
        "quiet": lambda: subject.steps(count, False, dispatches),
        "observed": lambda: subject.steps(count, True, dispatches),
    }
    took = interleaved(arms, seconds)
    each = {name: [one / count / dispatches for one in several] for name, several in took.items()}
    pairs = zip(each["observed"], each["quiet"], strict=True)
    # Where a dispatch is one step, every step of the arm was observed: a tenth of it is what every tenth costs.
    cost = statistics.median((watched / quiet - 1) * count / WATCHED for watched, quiet in pairs)
    emit(
        ms_a_step=spread(each["quiet"]),
        ms_a_step_observed=spread(each["observed"]),
        observation_cost=round(cost, 5),
        tokens_a_second=round(here.batch * here.length / statistics.median(each["quiet"])),
        **subject.health(),
        **memory(),
    )
    if trace:
        for observe in (False, True):
            kernels = traced(functools.partial(subject.steps, 2 if count > 1 else 1, observe))
            emit(**{"trace_observed" if observe else "trace_quiet": kernels})


def traced(call: Callable[[], Any], most: int = 25) -> dict[str, Any]:
    """Which kernels a call spends the device's time on, by name, and for what share of the time it is at work."""
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # watching Python would slow what dispatches
    options.host_tracer_level = 1
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            began = time.perf_counter()
            jax.block_until_ready(call())
            seconds = time.perf_counter() - began
        path = next(Path(folder).rglob("*.xplane.pb"))
        spans = list(kernel_spans(str(path)))
    totals: dict[str, list[float]] = {}
    for name, start, stop in spans:
        total = totals.setdefault(name[:120], [0.0, 0])
        total[0] += (stop - start) / 1e6
        total[1] += 1
    busy, end = 0.0, 0.0
    for _, start, stop in sorted(spans, key=lambda span: span[1]):
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    ranked = sorted(totals.items(), key=lambda item: -item[1][0])[:most]
    return {
        "ms": round(seconds * 1e3, 2),
        "busy": round(busy / 1e9 / seconds, 3),
        "kernels": len(spans),
        "top": [{"name": name, "ms": round(ms, 3), "calls": calls} for name, (ms, calls) in ranked],
    }


def kernel_spans(path: str) -> Iterator[tuple[str, float, float]]:
    """Name, start and end of each kernel in a trace; nanoseconds."""
    for plane in jax.profiler.ProfileData.from_file(path).planes:
        if plane.name.startswith("/device:GPU"):
            for line in plane.lines:
                if (line.name or "").startswith("Stream"):
                    for event in line.events:
                        yield event.name, event.start_ns, event.end_ns


def plain_jax(shape: list[int], attention: str, micro_batch: int, seconds: float) -> None:
    """A `jit` of the same step as anybody would write it, called in a loop."""
    here = jax_gpt.Shape(*shape)
    tokens = tokens_of(here, 1)[0]

    def attempt(micro_batch: int) -> tuple[Any, Any]:
        how = jax_gpt.How("bfloat16", attention, micro_batch)
        began = time.perf_counter()
        program = jax_gpt.steps(here, 1, 1e-3, how)
        emit(compile_seconds=round(time.perf_counter() - began, 1), micro_batch=micro_batch, **memory(program))
        state, losses = program(jax_gpt.fresh(here), tokens)
        jax.block_until_ready(losses)
        return program, state

    program, state = halving(micro_batch, attempt)
    losses: Any = None

    def steps(count: int) -> Any:
        nonlocal state, losses
        for _ in range(count):
            state, losses = program(state, tokens)
        return losses

    began = time.perf_counter()
    jax.block_until_ready(steps(1))
    count = max(1, min(200, round(BLOCK / (time.perf_counter() - began))))
    took = [one / count for one in interleaved({"": lambda: steps(count)}, seconds)[""]]
    emit(
        ms_a_step=spread(took),
        tokens_a_second=round(here.batch * here.length / statistics.median(took)),
        loss=round(float(losses[-1]), 3),
        **memory(),
    )


def lanes(shape: list[int], compute: dict[str, Any], lanes: list[int], seconds: float, trace: bool) -> None:
    """Tokens a second of runs one at a time, and of L runs as lanes of one program; small batches."""
    here = jax_gpt.Shape(*shape)
    paces: dict[str, tuple[Ours, int, int]] = {}
    for number in [None, *lanes]:
        name = "solo" if number is None else str(number)
        try:
            subject = Ours(here, compute, number)
            count, dispatches, _ = subject.pace()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            emit(**{f"lanes_{name}": {"out_of_memory": True}})
            continue
        paces[name] = subject, count, dispatches
        emit(**{f"compile_seconds_{name}": round(subject.program.compile_seconds, 1)})
        measure_lanes(here, {name: paces[name]}, 0.0)  # told at once, in case there is no time for more
    measure_lanes(here, paces, seconds)
    if trace:
        for name in ("solo", max(paces, key=lambda name: paces[name][0].lanes)):
            emit(**{f"trace_{name}": traced(functools.partial(paces[name][0].steps, WATCHED))})


def measure_lanes(shape: jax_gpt.Shape, paces: Mapping[str, tuple[Ours, int, int]], seconds: float) -> None:
    """Times of several numbers of lanes, interleaved."""
    arms: Arms = {
        name: functools.partial(subject.steps, count, False, dispatches)
        for name, (subject, count, dispatches) in paces.items()
    }
    for name, several in interleaved(arms, seconds).items():
        subject, count, dispatches = paces[name]
        took = [one / count / dispatches for one in several]
        rate = subject.lanes * shape.batch * shape.length / statistics.median(took)
        facts = {"ms_a_step": spread(took), "tokens_a_second": round(rate), **subject.health()}
        emit(**{f"lanes_{name}": facts | memory(subject.program.advance)})


def step_memory(shape: list[int], compute: dict[str, Any], micro_batch: int) -> None:
    """Peak memory of a step."""
    subject = Ours(jax_gpt.Shape(*shape), compute | {"micro_batch": micro_batch})
    emit(micro_batch=micro_batch, **memory(subject.program.advance))
    before = memory()
    jax.block_until_ready(subject.steps(1))
    emit(before_step=before, **memory(), **subject.health())


def attention(sizes: list[list[int]], seconds: float, tiny: bool) -> None:
    """Forward and backward of attention kernels, and what observing the logits costs beside them; [B, T, H, K]."""
    for size in sizes:
        arrays = tuple(jax.random.normal(jax.random.key(i), size, jnp.bfloat16) for i in range(3))
        for name, kernel in attention_kernels(tiny).items():
            try:
                time_attention(name, forward_and_backward(kernel), arrays, seconds)
            except Exception as error:  # a kernel that this device or this JAX cannot run; the others are measured
                emit(**{f"{name}_{dimensions(arrays[0])}": {"failed": f"{type(error).__name__}: {error}"[:600]}})
        time_attention("ours_observed", observer(size[2], size[3]), arrays, seconds)


def time_attention(name: str, function: Callable[..., Any], arrays: tuple[Any, ...], seconds: float) -> None:
    """Time and memory of a function of queries, keys and values; a rate as if it went forward and backward."""
    compiled = jax.jit(function).lower(*arrays).compile()
    took = repeated(lambda: compiled(*arrays), seconds)
    batch, time_, heads, head_dim = arrays[0].shape
    # 2 products forward and 4 backward, of the whole square, as in `flops_per_token`.
    rate = 12 * batch * heads * time_**2 * head_dim / statistics.median(took)
    facts = {**spread(took), "tflops": round(rate / 1e12, 3), **memory(compiled)}
    emit(**{f"{name}_{dimensions(arrays[0])}": facts})


def dimensions(array: Any) -> str:
    return "x".join(map(str, array.shape))


def forward_and_backward(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The gradients of the sum of what a kernel returns."""

    def total(query: Any, key: Any, value: Any) -> Any:
        return jnp.sum(kernel(query, key, value).astype(jnp.float32))

    return jax.grad(total, (0, 1, 2))


def attention_kernels(tiny: bool) -> dict[str, Callable[..., Any]]:
    """Those to compare: causal softmax attention of [B, T, H, K]."""
    from stability.model import kernels as ours

    def blockwise(query: Any, key: Any, value: Any) -> Any:
        return ours.blockwise(query, key, value, query.shape[-1] ** -0.5, jax.nn.softmax)

    kernels: dict[str, Callable[..., Any]] = {
        name: functools.partial(jax_gpt.attend, attention=name) for name in ("plain", "xla", "cudnn")
    }
    kernels["ours_blockwise"] = blockwise
    if importlib.util.find_spec("tokamax") and not tiny:
        for implementation in ("triton", "mosaic_gpu"):
            kernels[f"tokamax_{implementation}"] = functools.partial(tokamax_kernel, implementation)
    return kernels


def tokamax_kernel(implementation: Any, query: Any, key: Any, value: Any) -> Any:
    """Attention by one of tokamax's kernels."""
    import tokamax  # here: one that cannot be imported is a kernel that fails, and no more

    return tokamax.dot_product_attention(query, key, value, is_causal=True, implementation=implementation)


def observer(heads: int, head_dim: int) -> Callable[..., Any]:
    """The pass over queries and keys that yields each head's largest logit, mean cosine and entropy."""
    from flax import nnx

    from stability.config import ModelConfig
    from stability.model.layers import SoftmaxAttention, by_parts

    model = ModelConfig(width=heads * head_dim, depth=1, head_dim=head_dim)
    measure = functools.partial(SoftmaxAttention(model, nnx.Rngs(0)).observe_logits, head_dim**-0.5)

    def observe(query: Any, key: Any, _: Any) -> Any:
        return by_parts(measure, query, key)

    return observe


KINDS: dict[str, Callable[..., None]] = {
    "peak": peak,
    "ours": ours,
    "plain_jax": plain_jax,
    "lanes": lanes,
    "step_memory": step_memory,
    "attention": attention,
}


def main() -> None:
    task = json.loads(sys.argv[1])
    emit(made_with=made_with())
    KINDS[task.pop("kind")](**task)


if __name__ == "__main__":
    main()
