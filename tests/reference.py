"""The model, loss and optimizer once more, in float64 NumPy with plain loops: what the tests compare with.

Written from the formulas (arXiv 2309.14322, Section 2.1; rotary: arXiv 2104.09864; Adam: arXiv 1412.6980) and not from
the package, of which it imports nothing; slow and obvious on purpose.
Shapes: B batch, T time, D width, H heads, K head dim, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class BlockTrace:
    """What one block computed: [B, T, H, K] queries and keys, [B, H, T, T] attention, [B, T, D] streams."""

    raw_query: Array
    raw_key: Array
    query: Array
    key: Array
    logits: Array
    weights: Array
    mixed: Array
    thought: Array
    stream: Array


@dataclass(frozen=True)
class Trace:
    """What a forward pass computed: the blocks, the normalised final stream [B, T, D], the logits [B, T, V]."""

    blocks: list[BlockTrace]
    final_stream: Array
    logits: Array


def layernorm(x: Array, gain: Array, eps: float) -> Array:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps) * gain


def gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def rotary(x: Array, base: float) -> Array:
    """Pair (i, i + K/2) is a complex number that turns by base^(-2i/K) radians a position."""
    half = x.shape[-1] // 2
    z = x[..., :half] + 1j * x[..., half:]
    angle = np.outer(np.arange(x.shape[1]), base ** (-np.arange(half) / half))
    z = z * np.exp(1j * angle)[None, :, None, :]
    return np.concatenate([z.real, z.imag], -1)


def attention(query: Array, key: Array, value: Array) -> tuple[Array, Array, Array]:
    """Logits (NaN where the key lies in the future), weights and mixture of [B, T, H, K] queries, keys and values."""
    batch, time, heads, head_dim = query.shape
    logits = np.full((batch, heads, time, time), np.nan)
    weights = np.zeros((batch, heads, time, time))
    mixture = np.zeros_like(value)
    for b in range(batch):
        for h in range(heads):
            for t in range(time):
                row = np.array([query[b, t, h] @ key[b, s, h] / np.sqrt(head_dim) for s in range(t + 1)])
                weight = np.exp(row - row.max()) / np.exp(row - row.max()).sum()
                logits[b, h, t, : t + 1], weights[b, h, t, : t + 1] = row, weight
                mixture[b, t, h] = weight @ value[b, : t + 1, h]
    return logits, weights, mixture


def block(model: Any, p: dict[str, Any], x: Array) -> BlockTrace:
    batch, time, width = x.shape
    eps, heads = float(model.layernorm_eps), (batch, time, width // model.head_dim, model.head_dim)
    a = p["attention"]
    normed = layernorm(x, p["attention_norm"]["gain"], eps)
    flat_query, flat_key = normed @ a["query"]["kernel"], normed @ a["key"]["kernel"]
    raw_query, raw_key = flat_query.reshape(heads), flat_key.reshape(heads)
    query, key = raw_query, raw_key
    if model.qk_layernorm == "per_head":
        query = layernorm(raw_query, a["query_norm"]["gain"], eps)
        key = layernorm(raw_key, a["key_norm"]["gain"], eps)
    if model.qk_layernorm == "whole_width":
        query = layernorm(flat_query, a["query_norm"]["gain"], eps).reshape(heads)
        key = layernorm(flat_key, a["key_norm"]["gain"], eps).reshape(heads)
    query, key = rotary(query, float(model.rotary_base)), rotary(key, float(model.rotary_base))
    logits, weights, mixture = attention(query, key, (normed @ a["value"]["kernel"]).reshape(heads))
    mixed = mixture.reshape(x.shape) @ a["out"]["kernel"]
    x = x + mixed
    hidden = gelu(layernorm(x, p["mlp_norm"]["gain"], eps) @ p["mlp"]["inner"]["kernel"])
    thought = hidden @ p["mlp"]["outer"]["kernel"]
    return BlockTrace(raw_query, raw_key, query, key, logits, weights, mixed, thought, x + thought)


def forward(model: Any, parameters: dict[str, Any], tokens: Array) -> Trace:
    """Logits of a decoder for tokens [B, T]; `parameters` are nested dicts of arrays, `model` a ModelConfig."""
    p = to_float64(parameters)
    x, blocks = p["embedding"][tokens], []
    for name in sorted(p["blocks"]):
        blocks.append(block(model, p["blocks"][name], x))
        x = blocks[-1].stream
    final = layernorm(x, p["final_norm"]["gain"], float(model.layernorm_eps))
    return Trace(blocks, final, final @ p["head"]["kernel"])


def log_z(logits: Array) -> Array:
    top = logits.max(-1, keepdims=True)
    return np.log(np.exp(logits - top).sum(-1)) + top[..., 0]


def losses(logits: Array, targets: Array, z_loss: float) -> tuple[float, float]:
    """Total loss and cross-entropy of logits [B, T, V] and targets [B, T], means over B and T."""
    log_zs = log_z(logits)
    each = [log_zs[i] - logits[(*i, targets[i])] for i in np.ndindex(targets.shape)]
    return float(np.mean(each) + z_loss * np.mean(log_zs**2)), float(np.mean(each))


def total_loss(config: Any, parameters: dict[str, Any], tokens: Array) -> float:
    """The objective on tokens [B, T+1], under a RunConfig."""
    logits = forward(config.model, parameters, tokens[:, :-1]).logits
    return losses(logits, tokens[:, 1:], float(config.loss.z_loss))[0]


def rms(x: Array) -> float:
    return float(np.sqrt(np.mean(np.square(np.asarray(x, np.float64)))))


def observe_block(trace: BlockTrace) -> dict[str, Any]:
    """What one block shows of itself, one value a head where it has heads."""
    batch, time, heads, _ = trace.query.shape
    seen: dict[str, Any] = {
        "attention_output/rms": rms(trace.mixed),
        "mlp_output/rms": rms(trace.thought),
        "block_output/rms": rms(trace.stream),
        "attention_logit/max": [np.nanmax(trace.logits[:, h]) for h in range(heads)],
        "attention_logit/abs_max": [np.nanmax(np.abs(trace.logits[:, h])) for h in range(heads)],
        "query_rms/before_norm": [rms(trace.raw_query[:, :, h]) for h in range(heads)],
        "query_rms/after_norm": [rms(trace.query[:, :, h]) for h in range(heads)],
        "key_rms/before_norm": [rms(trace.raw_key[:, :, h]) for h in range(heads)],
        "key_rms/after_norm": [rms(trace.key[:, :, h]) for h in range(heads)],
    }
    entropies, cosines = np.zeros((heads, batch, time)), []
    for h in range(heads):
        pairs = []
        for b in range(batch):
            for t in range(time):
                weight = trace.weights[b, h, t, : t + 1]
                entropies[h, b, t] = -np.sum(weight * np.log(weight))
                for s in range(t + 1):
                    q, k = trace.query[b, t, h], trace.key[b, s, h]
                    pairs.append(q @ k / (np.linalg.norm(q) * np.linalg.norm(k)))
        cosines.append(np.mean(pairs))
    return seen | {"attention_entropy": entropies.mean((1, 2)), "query_key_cosine": cosines}


def observe_output_logits(logits: Array) -> dict[str, float]:
    return {
        "output_logit/mean": float(logits.mean()),
        "output_logit/std": float(logits.std()),
        "output_logit/max": float(logits.max()),
        "output_logit/log_z_mean": float(log_z(logits).mean()),
        "output_logit/log_z_squared_mean": float((log_z(logits) ** 2).mean()),
    }


def adam(gradient: Array, mu: Array, nu: Array, count: int, *, beta1: float, beta2: float, eps: float) -> Array:
    """Adam's update direction D of one tensor; `count` updates were made before, `mu` and `nu` are their moments."""
    mu = beta1 * mu + (1 - beta1) * gradient
    nu = beta2 * nu + (1 - beta2) * gradient**2
    return (mu / (1 - beta1 ** (count + 1))) / (np.sqrt(nu / (1 - beta2 ** (count + 1))) + eps)


def learning_rate(step: int, *, steps: int, warmup: int, peak: float, minimum: float) -> float:
    if step < warmup:
        return peak * step / warmup
    return minimum + (peak - minimum) * (1 + np.cos(np.pi * (step - warmup) / (steps - warmup))) / 2


def to_float64(tree: Any) -> Any:
    """Nested dicts of arrays, in float64."""
    if isinstance(tree, dict):
        return {key: to_float64(value) for key, value in tree.items()}
    return np.asarray(tree, np.float64)


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Array]:
    """Nested dicts as one: `blocks/block_00/mlp/inner/kernel` -> array."""
    flat: dict[str, Array] = {}
    for key, value in tree.items():
        flat |= flatten(value, f"{prefix}{key}/") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def unflatten(flat: dict[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for path, value in flat.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return tree


def metric_name(path: str) -> str:
    """The name under which a tensor is observed: `block_00/mlp/inner` for `blocks/block_00/mlp/inner/kernel`."""
    return path.removeprefix("blocks/").removesuffix("/kernel")


def slope(config: Any, flat: dict[str, Array], direction: dict[str, Array], tokens: Array, h: float = 1e-5) -> float:
    """Central difference of the objective along `direction` (some or all of the flattened parameters)."""

    def at(sign: float) -> float:
        moved = {path: value + sign * h * direction.get(path, 0.0) for path, value in flat.items()}
        return total_loss(config, unflatten(moved), tokens)

    return (at(1.0) - at(-1.0)) / (2 * h)
