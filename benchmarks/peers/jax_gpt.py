"""A training step of the default model in plain JAX: no Flax, no Optax, no observation, no sweep, one run.

The same arithmetic as `stability.training.step`, as short as it goes: what a step can take on this machine when nothing
is measured and nothing is configurable.
"""

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
    centred = x - x.mean(-1, keepdims=True)
    return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * gain


def rotate(x: jax.Array) -> jax.Array:
    half = x.shape[-1] // 2
    angle = jnp.arange(x.shape[1])[:, None] * 1e4 ** (-jnp.arange(half) / half)
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    a, b = x[..., :half], x[..., half:]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def loss(parameters: dict[str, Any], tokens: jax.Array, shape: Shape) -> jax.Array:
    """Cross-entropy and z-loss of [B, T+1] tokens."""
    heads = (shape.batch, shape.length, -1, shape.head_dim)
    past = jnp.tril(jnp.ones((shape.length, shape.length), bool))
    x = parameters["embedding"][tokens[:, :-1].reshape(-1)]
    for block in parameters["blocks"]:
        y = normed(x, block["norms"][0])
        q = rotate(normed((y @ block["q"]).reshape(heads), block["norms"][2]))
        k = rotate(normed((y @ block["k"]).reshape(heads), block["norms"][3]))
        logits = jnp.where(past, jnp.einsum("bthk,bshk->bhts", q, k) * shape.head_dim**-0.5, -jnp.inf)
        mixed = jnp.einsum("bhts,bshk->bthk", jax.nn.softmax(logits), (y @ block["v"]).reshape(heads))
        x = x + mixed.reshape(x.shape) @ block["o"]
        x = x + jax.nn.gelu(normed(x, block["norms"][1]) @ block["inner"]) @ block["outer"]
    logits = normed(x, parameters["norm"]) @ parameters["head"]
    log_z = jax.nn.logsumexp(logits, -1)
    target = jnp.take_along_axis(logits, tokens[:, 1:].reshape(-1, 1), -1)[:, 0]
    return (log_z - target).mean() + 1e-4 * (log_z**2).mean()


def steps(shape: Shape, count: int, learning_rate: float = 1e-2) -> Any:
    """`(state, tokens [count, B, T+1]) -> (state, losses [count])`, compiled; the state is given up.

    The state is parameters and Adam's two moments, a triple of trees, and the number of steps made.
    """

    def step(state: tuple[Any, Any, Any, jax.Array], tokens: jax.Array) -> tuple[Any, jax.Array]:
        p, m, v, t = state
        value, g = jax.value_and_grad(loss)(p, tokens, shape)
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
    with jax.default_matmul_precision("highest"):
        return jax.jit(many, donate_argnums=0).lower(state, tokens).compile()


def fresh(shape: Shape) -> Any:
    """A state to start from."""
    parameters = initialise(shape)
    zeros = jax.tree.map(jnp.zeros_like, parameters)
    return parameters, zeros, jax.tree.map(jnp.copy, zeros), jnp.zeros(())
