"""A product of many vectors with a small matrix, whose gradients are fast on CPUs."""

import functools
import math
from typing import Any

import jax
from jaxtyping import Array


def linear(x: Array, kernel: Array, dimension_numbers: Any, precision: Any = None) -> Array:
    """`lax.dot_general(x, kernel)` as linen's dense layers call it: the last axes of `x` are
    contracted with the first axes of `kernel`.

    Only the gradient of the kernel is written differently. XLA's CPU backend transposes the first
    operand of that product in memory, and JAX always puts the layer's output there. Here the
    narrower of the two operands comes first.
    """
    axes = len(dimension_numbers[0][0])
    return _linear(x, kernel, axes, precision)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _linear(x: Array, kernel: Array, axes: int, precision: Any) -> Array:
    contracted = tuple(range(x.ndim - axes, x.ndim)), tuple(range(axes))
    return jax.lax.dot_general(x, kernel, (contracted, ((), ())), precision=precision)


def _forward(x: Array, kernel: Array, axes: int, precision: Any):
    # Unwrapped, so that a remat policy sees a product.
    return _linear.__wrapped__(x, kernel, axes, precision), (x, kernel)


def _backward(axes: int, precision: Any, saved: tuple[Array, Array], gradient: Array):
    x, kernel = saved
    outputs = kernel.ndim - axes
    ends = tuple(range(gradient.ndim - outputs, gradient.ndim)), tuple(range(axes, kernel.ndim))
    grad_x = jax.lax.dot_general(gradient, kernel, (ends, ((), ())), precision=precision)
    many = (tuple(range(x.ndim - axes)),) * 2
    if math.prod(kernel.shape[:axes]) <= math.prod(kernel.shape[axes:]):
        return grad_x, jax.lax.dot_general(x, gradient, (many, ((), ())), precision=precision)
    grad_kernel = jax.lax.dot_general(gradient, x, (many, ((), ())), precision=precision)
    return grad_x, grad_kernel.transpose(*range(outputs, kernel.ndim), *range(outputs))


_linear.defvjp(_forward, _backward)
