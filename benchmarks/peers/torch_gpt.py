"""One run of the default model in plain PyTorch: fused AdamW, scaled_dot_product_attention, a loss each tenth step.

    python torch_gpt.py --tokens TOKENS.npy --learning-rate 0.01 --output run.json

Needs torch and numpy only: the CPU build of PyTorch, installed as pytorch.org says. The same model, text, schedule,
steps and validation as `python -m stability.run` with its defaults; it observes nothing inside the model. Weight decay
is PyTorch's, coupled to the learning rate, which takes the same time.
"""

import argparse
import json
import math
import time

BEGAN = time.perf_counter()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402


class Block(nn.Module):
    """Pre-LayerNorm attention with per-head qk-layernorm and rotary positions, then an MLP; no biases."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.heads, self.head_dim = width // head_dim, head_dim
        self.norm1, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.q_norm, self.k_norm = nn.LayerNorm(head_dim, bias=False), nn.LayerNorm(head_dim, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.inner, self.outer = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """[B, T, D] to [B, T, D]."""
        batch, time_, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, time_, 3, self.heads, self.head_dim).unbind(2)
        q, k = rotate(self.q_norm(q), cos, sin), rotate(self.k_norm(k), cos, sin)
        mixed = F.scaled_dot_product_attention(*(one.transpose(1, 2) for one in (q, k, v)), is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time_, width))
        return x + self.outer(F.gelu(self.inner(self.norm2(x)), approximate="tanh"))


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


class GPT(nn.Module):
    """Embedding, blocks, final norm, untied head."""

    def __init__(self, width: int, depth: int, head_dim: int, vocabulary: int, length: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.blocks = nn.ModuleList(Block(width, head_dim) for _ in range(depth))
        self.norm, self.head = nn.LayerNorm(width, bias=False), nn.Linear(width, vocabulary, bias=False)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5)
        frequency = 1e4 ** (-2 * torch.arange(head_dim // 2) / head_dim)
        angle = torch.arange(length)[:, None] * frequency
        self.register_buffer("cos", angle.cos()[:, None])
        self.register_buffer("sin", angle.sin()[:, None])

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """[B, T] to logits [B, T, V]."""
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, self.cos, self.sin)
        return self.head(self.norm(x))


def cross_entropy_and_z(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    log_z = torch.logsumexp(logits, -1)
    target = logits.gather(-1, targets[..., None])[..., 0]
    return (log_z - target).mean(), (log_z**2).mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--depth", type=int, default=2)
    parser.add_argument("--head-dim", type=int, default=32)
    parser.add_argument("--vocabulary", type=int, default=256)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--validation-sequences", type=int, default=512)
    parser.add_argument("--threads", type=int, default=None)
    a = parser.parse_args()
    if a.threads:
        torch.set_num_threads(a.threads)
    torch.manual_seed(a.seed)
    tokens = np.load(a.tokens, mmap_mode="r")
    held = len(tokens) // 20
    train, validation = tokens[:-held], tokens[-held:]
    random = np.random.default_rng(a.seed)

    def windows(of: np.ndarray, starts: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.from_numpy(np.stack([of[s : s + a.length + 1] for s in starts]).astype(np.int64))
        return rows[:, :-1], rows[:, 1:]

    model = GPT(a.width, a.depth, a.head_dim, a.vocabulary, a.length)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=a.learning_rate, betas=(0.9, 0.95), eps=1e-8, weight_decay=1e-4, fused=True
    )
    warmup, minimum = round(0.05 * a.steps), 1e-5

    def rate(step: int) -> float:
        if step < warmup:
            return a.learning_rate * step / warmup
        progress = (step - warmup) / (a.steps - warmup)
        return minimum + (a.learning_rate - minimum) * 0.5 * (1 + math.cos(math.pi * progress))

    def validate() -> float:
        starts = np.arange(a.validation_sequences) * a.length
        with torch.no_grad():
            losses = []
            for i in range(0, len(starts), a.batch):
                inputs, targets = windows(validation, starts[i : i + a.batch])
                losses.append(cross_entropy_and_z(model(inputs), targets)[0].item())
        return float(np.mean(losses))

    rows, initial, ready = [], validate(), time.perf_counter()
    for step in range(a.steps):
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        inputs, targets = windows(train, random.integers(0, len(train) - a.length - 1, a.batch))
        loss, z = cross_entropy_and_z(model(inputs), targets)
        optimizer.zero_grad(set_to_none=True)
        (loss + 1e-4 * z).backward()
        norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 10 == 0 or step == a.steps - 1:
            rows.append({"step": step, "loss": loss.item(), "gradient_norm": norm.item()})
    trained = time.perf_counter()
    result = {"loss_initial": initial, "loss_validation": validate(), "rows": rows}
    result |= {"seconds_before_training": ready - BEGAN, "seconds_a_step": (trained - ready) / a.steps}
    with open(a.output, "w") as file:
        json.dump(result, file)


if __name__ == "__main__":
    main()
