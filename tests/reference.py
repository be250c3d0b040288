"""The model, loss and optimizer once more, in float64 NumPy with plain loops: what the tests compare with.

Written from the formulas (arXiv 2309.14322, Sections 2.1 and 3.2, Figures 10, E.11 and E.14; rotary: arXiv 2104.09864;
Adam: arXiv 1412.6980) and not from the package, of which it imports nothing; slow and obvious on purpose.
Shapes: B batch, T time, D width, H heads, K head dim, F MLP hidden, V vocabulary.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray


@dataclass(frozen=True)
class AttentionTrace:
    """What attention computed: [B, T, H, K] queries, keys, values; [B, H, T, T] logits, weights; [B, T, D] mixed."""

    raw_query: Array
    raw_key: Array
    query: Array
    key: Array
    value: Array
    logits: Array
    weights: Array
    mixed: Array


@dataclass(frozen=True)
class BlockTrace:
    """What one block computed, None where it has no such part: hidden is [B, T, F]; thought and stream [B, T, D]."""

    attention: AttentionTrace | None
    hidden: Array | None
    thought: Array | None
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


def rescale(x: Array, kappa: float) -> Array:
    return np.sqrt(kappa) * x / np.sqrt(np.mean(x**2, -1, keepdims=True))


def softmax(row: Array, model: Any, time: int) -> Array:
    return np.exp(row - row.max()) / np.exp(row - row.max()).sum()


def squared_relu(row: Array, model: Any, time: int) -> Array:
    return np.maximum(row, 0) ** 2 / time ** float(model.attention_length_exponent)


WEIGHTS = {"softmax": softmax, "squared_relu": squared_relu}


def logit_scale(model: Any) -> float:
    exponent = model.attention_scale_exponent
    if exponent is None:
        exponent = 1.0 if model.parameterization == "mup_full" else 0.5
    return 1 / model.head_dim ** float(exponent)


def mix(model: Any, query: Array, key: Array, value: Array) -> tuple[Array, Array, Array]:
    """Logits (NaN where the key lies in the future), weights and mixture of [B, T, H, K] queries, keys and values."""
    batch, time, heads, _ = query.shape
    logits = np.full((batch, heads, time, time), np.nan)
    weights = np.zeros((batch, heads, time, time))
    mixture = np.zeros_like(value)
    for b in range(batch):
        for h in range(heads):
            for t in range(time):
                row = key[b, : t + 1, h] @ query[b, t, h] * logit_scale(model)
                weight = WEIGHTS[model.attention](row, model, time)
                logits[b, h, t, : t + 1], weights[b, h, t, : t + 1] = row, weight
                mixture[b, t, h] = weight @ value[b, : t + 1, h]
    return logits, weights, mixture


def attention(model: Any, p: dict[str, Any], x: Array) -> AttentionTrace:
    """Attention of the normalised stream [B, T, D]."""
    batch, time, width = x.shape
    eps, heads = float(model.layernorm_eps), (batch, time, width // model.head_dim, model.head_dim)
    flat_query, flat_key, value = x @ p["query"]["kernel"], x @ p["key"]["kernel"], x @ p["value"]["kernel"]
    raw_query, raw_key = flat_query.reshape(heads), flat_key.reshape(heads)
    query, key = raw_query, raw_key
    if model.qk_layernorm == "per_head":
        query = layernorm(raw_query, p["query_norm"]["gain"], eps)
        key = layernorm(raw_key, p["key_norm"]["gain"], eps)
    if model.qk_layernorm == "whole_width":
        query = layernorm(flat_query, p["query_norm"]["gain"], eps).reshape(heads)
        key = layernorm(flat_key, p["key_norm"]["gain"], eps).reshape(heads)
    query, key = rotary(query, float(model.rotary_base)), rotary(key, float(model.rotary_base))
    if model.kappa is not None:
        query, key = rescale(query, float(model.kappa)), rescale(key, float(model.kappa))
    logits, weights, mixture = mix(model, query, key, value.reshape(heads))
    mixed = mixture.reshape(x.shape) @ p["out"]["kernel"]
    return AttentionTrace(raw_query, raw_key, query, key, value.reshape(heads), logits, weights, mixed)


def block(model: Any, p: dict[str, Any], x: Array) -> BlockTrace:
    eps, seen, hidden, thought = float(model.layernorm_eps), None, None, None
    if model.attention != "none":
        seen = attention(model, p["attention"], layernorm(x, p["attention_norm"]["gain"], eps))
        x = x + seen.mixed
    if model.mlp != "none":
        hidden = layernorm(x, p["mlp_norm"]["gain"], eps) @ p["mlp"]["inner"]["kernel"]
        thought = gelu(hidden) @ p["mlp"]["outer"]["kernel"]
        x = x + thought
    return BlockTrace(seen, hidden, thought, x)


def forward(model: Any, parameters: dict[str, Any], tokens: Array) -> Trace:
    """Logits of a decoder for tokens [B, T]; `parameters` are nested dicts of arrays, `model` a ModelConfig."""
    p = to_float64(parameters)
    x, blocks = p["embedding"][tokens], []
    for i in range(model.depth):
        blocks.append(block(model, p.get("blocks", {}).get(f"block_{i:02d}", {}), x))
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
    seen: dict[str, Any] = {"block_output/rms": rms(trace.stream)}
    if trace.thought is not None:
        seen["mlp_output/rms"] = rms(trace.thought)
    if trace.attention is not None:
        seen |= {"attention_output/rms": rms(trace.attention.mixed)} | observe_attention(trace.attention)
    return seen


def observe_attention(trace: AttentionTrace) -> dict[str, Any]:
    """One value a head. Entropy only where the weights of every query sum to one."""
    batch, time, heads, _ = trace.query.shape
    seen: dict[str, Any] = {
        "attention_logit/max": [np.nanmax(trace.logits[:, h]) for h in range(heads)],
        "attention_logit/abs_max": [np.nanmax(np.abs(trace.logits[:, h])) for h in range(heads)],
        "query_rms/before_norm": [rms(trace.raw_query[:, :, h]) for h in range(heads)],
        "query_rms/after_norm": [rms(trace.query[:, :, h]) for h in range(heads)],
        "key_rms/before_norm": [rms(trace.raw_key[:, :, h]) for h in range(heads)],
        "key_rms/after_norm": [rms(trace.key[:, :, h]) for h in range(heads)],
        "query_key_cosine": [],
    }
    for h in range(heads):
        pairs = []
        for b, t in np.ndindex(batch, time):
            for s in range(t + 1):
                q, k = trace.query[b, t, h], trace.key[b, s, h]
                pairs.append(q @ k / (np.linalg.norm(q) * np.linalg.norm(k)))
        seen["query_key_cosine"].append(np.mean(pairs))
    if np.allclose(trace.weights.sum(-1), 1):
        terms = [-w * np.log(w) if w > 0 else 0.0 for w in trace.weights.ravel()]
        seen["attention_entropy"] = np.reshape(terms, trace.weights.shape).sum(-1).mean((0, 2))
    return seen


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
