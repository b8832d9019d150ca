"""Softmax attention over few frames on a CPU, as sums of vectors.

The matrices of a few frames are too small for matrix products: bringing them into the order that a
product needs costs more than the product. Here they stay in the order in which the projections
leave them.
"""

import math

import jax
from jaxtyping import Array, Float


@jax.custom_vjp
def attend(
    q: Float[Array, "n f heads d"],
    k: Float[Array, "n f heads d"],
    v: Float[Array, "n f heads d"],
    bias: Float[Array, "f f heads"],
) -> Float[Array, "n f heads d"]:
    """softmax(q kᵀ / √d + bias) v for each sequence and head."""
    return _forward(q, k, v, bias)[0]


def _forward(q, k, v, bias):
    logits = _pairs(q, k) / math.sqrt(q.shape[-1]) + bias
    weights = jax.nn.softmax(logits, axis=2)
    return _mix(weights, v), (q, k, v, weights)


def _backward(saved, gradient):
    q, k, v, weights = saved
    grad_v = _mix(weights.swapaxes(1, 2), gradient)
    weighted = weights * _pairs(gradient, v)
    grad_bias = weighted - weights * weighted.sum(axis=2, keepdims=True)
    grad_logits = grad_bias / math.sqrt(q.shape[-1])
    grad_q, grad_k = _mix(grad_logits, k), _mix(grad_logits.swapaxes(1, 2), q)
    return grad_q, grad_k, grad_v, grad_bias.sum(axis=0)


attend.defvjp(_forward, _backward)


def _pairs(
    a: Float[Array, "n f heads d"], b: Float[Array, "n f heads d"]
) -> Float[Array, "n f f heads"]:
    """The inner product of each frame of `a` with each frame of `b`."""
    return (a[:, :, None] * b[:, None]).sum(axis=-1)


def _mix(
    weights: Float[Array, "n f f heads"], x: Float[Array, "n f heads d"]
) -> Float[Array, "n f heads d"]:
    """For each frame the weighted sum of the frames of `x`."""
    # Written out: XLA's CPU backend then vectorises over the features.
    frames = range(x.shape[1])
    return sum(weights[:, :, frame, :, None] * x[:, None, frame] for frame in frames)
