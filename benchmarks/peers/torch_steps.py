"""One measurement of `benchmarks.accelerator` in PyTorch: matrix products, steps of a GPT, or attention.

    python -m benchmarks.peers.torch_steps TASK

TASK and results as in `benchmarks.on_device`. Needs torch and numpy only. The step is what `torch.compile` makes of the
model of `torch_gpt`: bfloat16 by autocast over float32 parameters, scaled_dot_product_attention, fused AdamW, clipping,
z-loss, gradients of micro-batches added up; nothing is observed and no loss is read.
"""

import functools
import json
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.peers.torch_gpt import GPT, cross_entropy_and_z

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BLOCK = 0.4
"""Seconds that one timed block should take."""


def emit(**facts: Any) -> None:
    """Tell the process that waits."""
    print("RESULT " + json.dumps(facts), flush=True)


def wait() -> None:
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def repeated(call: Callable[[], Any], seconds: float, block: float = BLOCK) -> list[float]:
    """Seconds of a call that has run before, in blocks of so many that a block takes a while."""
    began = time.perf_counter()
    call()
    wait()
    repeats = max(1, min(500, round(block / (time.perf_counter() - began))))
    took: list[float] = []
    while len(took) < 3 or (time.perf_counter() - began < seconds and len(took) < 30):
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        wait()
        took.append((time.perf_counter() - start) / repeats)
    return took


def spread(seconds: list[float]) -> dict[str, Any]:
    """Median and extremes, in milliseconds."""
    numbers = {"median": statistics.median(seconds), "least": min(seconds), "most": max(seconds)}
    return {f"ms_{name}": round(value * 1e3, 4) for name, value in numbers.items()} | {"blocks": len(seconds)}


def made_with() -> dict[str, Any]:
    """Device and versions."""
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else "CPU"
    versions = {"python": sys.version.split()[0], "torch": torch.__version__, "cuda": torch.version.cuda}
    return {"device": name, "versions": versions | {"cudnn": torch.backends.cudnn.version()}}


def peak(shapes: list[list[int]], seconds: float) -> None:
    """Rate of bfloat16 matrix products [m, k] x [k, n]."""
    for m, k, n in shapes:
        a = torch.randn(m, k, device=DEVICE, dtype=torch.bfloat16)
        b = torch.randn(k, n, device=DEVICE, dtype=torch.bfloat16)
        torch.mm(a, b)
        took = repeated(functools.partial(torch.mm, a, b), seconds / len(shapes), BLOCK / 4)
        rate = 2 * m * k * n / statistics.median(took)
        emit(**{f"matmul_{m}x{k}x{n}": {"tflops": round(rate / 1e12, 3), **spread(took)}})


class Objective(nn.Module):
    """Tokens [B, T+1] to the loss that is minimised, so that all of it is compiled."""

    def __init__(self, model: GPT) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Cross-entropy and z-loss."""
        loss, z = cross_entropy_and_z(self.model(tokens[:, :-1]).float(), tokens[:, 1:])
        return loss + 1e-4 * z


class Training:
    """A model, its optimizer, and one batch of random tokens."""

    def __init__(self, shape: list[int], micro_batch: int, compiled: bool, mode: str) -> None:
        width, depth, vocabulary, batch, length, head_dim = shape
        self.micro_batch = micro_batch
        model = GPT(width, depth, head_dim, vocabulary, length).to(DEVICE)
        self.parameters = list(model.parameters())
        objective = Objective(model)
        self.objective: Any = torch.compile(objective, mode=mode, dynamic=False) if compiled else objective
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=1e-3, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-4, fused=True
        )
        random = np.random.default_rng(0).integers(0, vocabulary, (batch, length + 1), np.int64)
        self.tokens = torch.from_numpy(random)
        if DEVICE == "cuda":
            self.tokens = self.tokens.pin_memory()
        self.loss: Any = None

    def step(self) -> None:
        """One update, not waited for."""
        parts = self.tokens.to(DEVICE, non_blocking=True).split(self.micro_batch)
        for part in parts:
            with torch.autocast(DEVICE, torch.bfloat16):
                self.loss = self.objective(part) / len(parts)
            self.loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)


def steps(shape: list[int], micro_batch: int, compiled: bool, mode: str, seconds: float) -> None:
    """Time of a step and peak memory; the micro-batch is halved until it fits."""
    began = time.perf_counter()
    training = begun(shape, micro_batch, compiled, mode)
    while training is None:
        emit(out_of_memory_at_micro_batch=micro_batch)
        micro_batch //= 2
        torch.compiler.reset()
        torch.cuda.empty_cache()
        began = time.perf_counter()
        training = begun(shape, micro_batch, compiled, mode)
    emit(compile_seconds=round(time.perf_counter() - began, 1), micro_batch=micro_batch, mode=mode, compiled=compiled)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    took = repeated(training.step, seconds)
    facts: dict[str, Any] = {"ms_a_step": spread(took)}
    facts["tokens_a_second"] = round(shape[3] * shape[4] / statistics.median(took))
    if DEVICE == "cuda":
        facts["peak_bytes_in_use_mb"] = round(torch.cuda.max_memory_allocated() / 1e6, 1)
    emit(**facts, loss=round(training.loss.item() * -(-shape[3] // micro_batch), 3))


def begun(shape: list[int], micro_batch: int, compiled: bool, mode: str) -> Training | None:
    """A training after two steps; None where they did not fit into memory."""
    try:
        training = Training(shape, micro_batch, compiled, mode)
        for _ in range(2):
            training.step()
        wait()
    except torch.OutOfMemoryError:
        if micro_batch == 1:
            raise
        return None
    return training


def attention(sizes: list[list[int]], seconds: float, tiny: bool) -> None:
    """Forward and backward of `scaled_dot_product_attention`, as PyTorch chooses and by each of its kernels."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    backends = {"cudnn": [SDPBackend.CUDNN_ATTENTION], "flash": [SDPBackend.FLASH_ATTENTION]}
    for batch, time_, heads, head_dim in sizes:
        q, k, v = (
            torch.randn(batch, heads, time_, head_dim, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
            for _ in range(3)
        )
        flops = 12 * batch * heads * time_**2 * head_dim

        def both(q: Any = q, k: Any = k, v: Any = v) -> None:
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

        def timed() -> list[float]:
            both()
            return repeated(both, seconds, BLOCK / 4)

        for name, allowed in {"chosen": None, **backends}.items():
            label = f"torch_sdpa_{name}_{batch}x{time_}x{heads}x{head_dim}"
            try:
                if allowed is None:
                    took = timed()
                else:
                    with sdpa_kernel(allowed):
                        took = timed()
            except RuntimeError as error:  # not on this device
                emit(**{label: {"failed": str(error)[:300]}})
                continue
            emit(**{label: {**spread(took), "tflops": round(flops / statistics.median(took) / 1e12, 3)}})


KINDS: dict[str, Callable[..., None]] = {"peak": peak, "steps": steps, "attention": attention}


def main() -> None:
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    task = json.loads(sys.argv[1])
    emit(made_with=made_with())
    KINDS[task.pop("kind")](**task)


if __name__ == "__main__":
    main()
