"""Operations whose gradients are written out, where automatic differentiation would keep or read more than it needs.

Shapes: S positions, I inputs, O outputs, D the size that is normalised.
"""

from functools import partial
from math import pi, sqrt
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from stability.config import Scalar
from stability.model.axes import whole

TRANSPOSED_FROM = 128
"""Fan-in from which on `product` transposes its input for the gradient on a CPU; below it costs what it saves."""


Arrays = TypeVar("Arrays")


def apart(arrays: Arrays) -> Arrays:
    """Arrays as they are, which a compiler may not join with what they are made of, nor make anew for each reader."""
    same: Arrays = jax.lax.optimization_barrier(arrays)  # type: ignore[no-untyped-call]  # JAX states no types for it
    return same


def ready(kernel_IxO: Float[Array, "I O"], precision: DTypeLike) -> Float[Array, "I O"]:
    """A weight as products read it: in their precision, and all of it on every device of a lane."""
    return whole(kernel_IxO.astype(precision))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def product(
    x_SxI: Float[Array, "S I"],
    kernel_IxO: Float[Array, "I O"],
    result: DTypeLike | None = None,
    ready_IxO: Float[Array, "I O"] | None = None,
) -> Float[Array, "S O"]:
    """x W in the precision of x; the gradient of W keeps W's own precision.

    On a CPU that gradient, x^T dy, is a product of an x^T that lies in memory as such: XLA would read x and dy across
    their rows at half the speed (docs/lab_notebook.md). Other devices transpose as they read, at no cost.

    Args:
        x_SxI: activations.
        kernel_IxO: a weight, in float32.
        result: the type of the result; None is that of x. Products are summed up in float32 in any case.
        ready_IxO: what `ready` makes of the weight, from whoever multiplies by it many times. None is to make it, here
            and again for the gradient, so that it need not be kept.
    """
    return _forward(x_SxI, kernel_IxO, result, ready_IxO)


def _forward(x_SxI: Array, kernel_IxO: Array, result: DTypeLike | None, ready_IxO: Array | None) -> Array:
    return jnp.matmul(x_SxI, _ready(x_SxI, kernel_IxO, ready_IxO), preferred_element_type=result or x_SxI.dtype)


def _ready(x_SxI: Array, kernel_IxO: Array, ready_IxO: Array | None) -> Array:
    return ready(kernel_IxO, x_SxI.dtype) if ready_IxO is None else ready_IxO


def _product_forward(
    x_SxI: Array, kernel_IxO: Array, result: DTypeLike | None, ready_IxO: Array | None
) -> tuple[Array, tuple[Array, Array, Array | None]]:
    return _forward(x_SxI, kernel_IxO, result, ready_IxO), (x_SxI, kernel_IxO, ready_IxO)


def _product_backward(
    result: DTypeLike | None, saved: tuple[Array, Array, Array | None], dy_SxO: Array
) -> tuple[Array, Array, None]:
    x_SxI, kernel_IxO, ready_IxO = saved
    dy_SxO = dy_SxO.astype(x_SxI.dtype)

    def as_read(x_SxI: Array, dy_SxO: Array) -> Array:
        return jnp.matmul(x_SxI.T, dy_SxO, preferred_element_type=kernel_IxO.dtype)

    def transposed(x_SxI: Array, dy_SxO: Array) -> Array:
        return jnp.matmul(apart(x_SxI.T), dy_SxO, preferred_element_type=kernel_IxO.dtype)

    dx_SxI = jnp.matmul(dy_SxO, _ready(x_SxI, kernel_IxO, ready_IxO).T)
    if kernel_IxO.shape[0] < TRANSPOSED_FROM:
        return dx_SxI, as_read(x_SxI, dy_SxO), None
    return dx_SxI, jax.lax.platform_dependent(x_SxI, dy_SxO, cpu=transposed, default=as_read), None


product.defvjp(_product_forward, _product_backward)


@jax.custom_vjp
def normalise(x: Float[Array, "... D"], gain: Float[Array, " D"], eps: Scalar) -> Float[Array, "... D"]:
    """(x - mean) / sqrt(var + eps) x gain over the last axis, in float32; the result has the precision of x.

    The gradient reads x again, and each row's mean and deviation, which are made once: XLA would make them anew for
    the gain's gradient, and write out all of x in float32 on the way. A row whose variance overflows is NaN: by the
    formula it would be zero, and a stream that has left the finite numbers would look healthy.
    """
    return _normalise_forward(x, gain, eps)[0]


def _normalise_forward(x: Array, gain: Array, eps: Scalar) -> tuple[Array, tuple[Array, ...]]:
    x32 = x.astype(jnp.float32)
    mean = jnp.mean(x32, -1)
    variance = jnp.mean(jnp.square(x32 - mean[..., None]), -1)
    inverse_deviation = jnp.where(jnp.isfinite(variance), jax.lax.rsqrt(variance + eps), jnp.nan)
    # Flat, since a TPU stores an array whose last dimension is short as if that were 128.
    moments = apart((mean.ravel(), inverse_deviation.ravel()))
    return (_normal(x, *moments)[0] * _last(gain, x)).astype(x.dtype), (x, gain, *moments)


def _normal(x: Array, mean: Array, inverse_deviation: Array) -> tuple[Array, Array]:
    """x in its normal form, and what it was multiplied by."""
    mean, inverse_deviation = (moment.reshape(*x.shape[:-1], 1) for moment in (mean, inverse_deviation))
    return (x.astype(jnp.float32) - mean) * inverse_deviation, inverse_deviation


def _last(gain: Array, x: Array) -> Array:
    return gain.reshape((1,) * (x.ndim - 1) + (-1,))


def _normalise_backward(saved: tuple[Array, ...], dy: Array) -> tuple[Array, Array, None]:
    x, gain, *moments = saved
    dy32 = dy.astype(jnp.float32)
    normal, inverse_deviation = _normal(x, *moments)
    dnormal = dy32 * _last(gain, x)
    along = jnp.mean(dnormal * normal, -1, keepdims=True)
    dx = inverse_deviation * (dnormal - jnp.mean(dnormal, -1, keepdims=True) - normal * along)
    return dx.astype(x.dtype), jnp.sum(dy32 * normal, range(x.ndim - 1)), None


normalise.defvjp(_normalise_forward, _normalise_backward)

CUBIC = 0.044715
"""Of the tanh form of GELU (arXiv 1606.08415): x (1 + tanh(sqrt(2 / pi) (x + CUBIC x^3))) / 2."""


@jax.custom_vjp
def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GELU in its tanh form; the gradient keeps x alone."""
    return jax.nn.gelu(x, approximate=True)


def _gelu_forward(x: Array) -> tuple[Array, Array]:
    return gelu(x), x


def _gelu_backward(x: Array, dy: Array) -> tuple[Array]:
    x32 = x.astype(jnp.float32)
    square, scale = jnp.square(x32), sqrt(2 / pi)
    tanh = jnp.tanh(scale * x32 * (1 + CUBIC * square))
    slope = (1 + tanh) / 2 + x32 / 2 * (1 - jnp.square(tanh)) * scale * (1 + 3 * CUBIC * square)
    return ((dy.astype(jnp.float32) * slope).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)
