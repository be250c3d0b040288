"""A training step of the default model in plain JAX: no Flax, no Optax, no observation, no sweep, one run.

The same arithmetic as `stability.training.step`, as short as it goes: what a step can take on this machine when nothing
is measured and nothing is configurable. `How` says what an accelerator wants otherwise.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Shape(NamedTuple):
    """A model and its batch."""

    width: int
    depth: int
    vocabulary: int
    batch: int
    length: int
    head_dim: int = 32


class How(NamedTuple):
    """How a step is computed.

    precision    of streams and products; parameters, norms, softmax and loss are float32
    attention    `plain`, with all logits in memory, or what `jax.nn.dot_product_attention` calls an implementation
    micro_batch  sequences in memory at a time, whose gradients are added up; None is the whole batch
    """

    precision: str = "float32"
    attention: str = "plain"
    micro_batch: int | None = None


PLAINLY = How()


def initialise(shape: Shape, seed: int = 0) -> dict[str, Any]:
    """Random parameters, nested."""
    keys = iter(jax.random.split(jax.random.key(seed), 8 * shape.depth + 2))
    d, v, k = shape.width, shape.vocabulary, shape.head_dim

    def matrix(i: int, o: int) -> jax.Array:
        return jax.random.truncated_normal(next(keys), -2, 2, (i, o)) * i**-0.5 / 0.88

    blocks = [
        {
            **{name: matrix(d, d) for name in ("q", "k", "v", "o")},
            "inner": matrix(d, 4 * d),
            "outer": matrix(4 * d, d),
            "norms": [jnp.ones(d), jnp.ones(d), jnp.ones(k), jnp.ones(k)],
        }
        for _ in range(shape.depth)
    ]
    return {"embedding": matrix(v, d), "blocks": blocks, "norm": jnp.ones(d), "head": matrix(d, v)}


def normed(x: jax.Array, gain: jax.Array) -> jax.Array:
    x32 = x.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    return (centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * gain).astype(x.dtype)


def rotate(x: jax.Array) -> jax.Array:
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 1e4 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = x[..., :half].astype(jnp.float32), x[..., half:].astype(jnp.float32)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1).astype(x.dtype)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, attention: str) -> jax.Array:
    """Causal softmax attention of [B, T, H, K]."""
    if attention != "plain":
        implementation: Any = attention
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation=implementation)
    past = jnp.tril(jnp.ones((q.shape[1], q.shape[1]), bool))
    products = jnp.einsum("bthk,bshk->bhts", q, k, preferred_element_type=jnp.float32)
    logits = jnp.where(past, products * q.shape[-1] ** -0.5, -jnp.inf)
    return jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(logits).astype(v.dtype), v)


def block(x: jax.Array, parameters: Any, shape: Shape, attention: str) -> jax.Array:
    """[S, D] to [S, D]."""
    heads, norms = (-1, shape.length, shape.width // shape.head_dim, shape.head_dim), parameters["norms"]
    matrix = {name: value.astype(x.dtype) for name, value in parameters.items() if name != "norms"}
    y = normed(x, norms[0])
    q = rotate(normed((y @ matrix["q"]).reshape(heads), norms[2]))
    k = rotate(normed((y @ matrix["k"]).reshape(heads), norms[3]))
    x = x + attend(q, k, (y @ matrix["v"]).reshape(heads), attention).reshape(x.shape) @ matrix["o"]
    return x + jax.nn.gelu(normed(x, norms[1]) @ matrix["inner"]) @ matrix["outer"]


def loss(parameters: dict[str, Any], tokens: jax.Array, shape: Shape, how: How = PLAINLY) -> jax.Array:
    """Cross-entropy and z-loss of [B, T+1] tokens."""
    x = parameters["embedding"].astype(how.precision)[tokens[:, :-1].reshape(-1)]
    for weights in parameters["blocks"]:
        x = block(x, weights, shape, how.attention)
    logits = (normed(x, parameters["norm"]) @ parameters["head"].astype(x.dtype)).astype(jnp.float32)
    log_z = jax.nn.logsumexp(logits, -1)
    target = jnp.take_along_axis(logits, tokens[:, 1:].reshape(-1, 1), -1)[:, 0]
    return (log_z - target).mean() + 1e-4 * (log_z**2).mean()


def loss_and_gradients(parameters: Any, tokens: jax.Array, shape: Shape, how: How) -> tuple[jax.Array, Any]:
    """Of a batch, a micro-batch after the other where `how` says so."""
    of = partial(jax.value_and_grad(loss), shape=shape, how=how)
    parts = tokens.reshape(-1, how.micro_batch or len(tokens), tokens.shape[1])
    if len(parts) == 1:
        return of(parameters, tokens)

    def add(total: Any, part: jax.Array) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, of(parameters, part)), None

    total, _ = jax.lax.scan(add, (jnp.zeros(()), jax.tree.map(jnp.zeros_like, parameters)), parts)
    return jax.tree.map(lambda leaf: leaf / len(parts), total)


def steps(shape: Shape, count: int, learning_rate: float = 1e-2, how: How = PLAINLY) -> Any:
    """`(state, tokens [count, B, T+1]) -> (state, losses [count])`, compiled; the state is given up.

    The state is parameters and Adam's two moments, a triple of trees, and the number of steps made.
    """

    def step(state: tuple[Any, Any, Any, jax.Array], tokens: jax.Array) -> tuple[Any, jax.Array]:
        p, m, v, t = state
        value, g = loss_and_gradients(p, tokens, shape, how)
        norm = jnp.sqrt(sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(g)))
        g = jax.tree.map(lambda leaf: leaf * jnp.minimum(1.0, 1.0 / norm), g)
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g * g, v, g)
        a, b = 1 / (1 - 0.9 ** (t + 1)), 1 / (1 - 0.95 ** (t + 1))
        p = jax.tree.map(lambda p, m, v: p - learning_rate * (a * m / (jnp.sqrt(b * v) + 1e-8)) - 1e-4 * p, p, m, v)
        return (p, m, v, t + 1), value

    def many(state: Any, tokens: jax.Array) -> Any:
        def body(i: Any, carry: Any) -> Any:
            state, values = carry
            state, value = step(state, tokens[i])
            return state, values.at[i].set(value)

        return jax.lax.fori_loop(0, count, body, (state, jnp.zeros(count)))

    parameters = jax.eval_shape(lambda: initialise(shape))
    state = (parameters, parameters, parameters, jax.ShapeDtypeStruct((), jnp.float32))
    tokens = jax.ShapeDtypeStruct((count, shape.batch, shape.length + 1), jnp.int32)
    with jax.default_matmul_precision("highest" if how.precision == "float32" else None):
        return jax.jit(many, donate_argnums=0).lower(state, tokens).compile()


def fresh(shape: Shape) -> Any:
    """A state to start from."""
    parameters = initialise(shape)
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    return parameters, zeros, jax.tree.map(jnp.copy, zeros), jnp.zeros(())
