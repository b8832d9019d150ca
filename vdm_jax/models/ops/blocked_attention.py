"""Softmax attention over pixels on a CPU, with a few MiB of weights in memory at a time.

XLA's CPU backend writes out the weights of all sequences, several times, and keeps them for the
gradient: four times 1 GB for 64 frames of 32 x 32 pixels with four heads. Here the weights of a few
sequences and heads, or of a part of one's queries, are computed at a time, in matrices that stay in
the cache, and the gradient computes them again. That is up to nine times as fast, in a hundredth of
the memory.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

# Weights in memory at a time, 4 MiB. With fewer, the loop over short sequences costs more than its
# products. With more, the weights do not fit the cache.
_WEIGHTS = 2**20
_FEWEST = 64  # queries of a part: products of fewer rows are slow

_Attended = Float[Array, "n p heads d"]
_Attending = Float[Array, "n l heads d"]
_Sequences = Float[Array, "s p d"]
_Keys = Float[Array, "s l d"]


def attend(q: _Attended, k: _Attending, v: _Attending) -> _Attended:
    """softmax(q kᵀ / √d) v for each sequence and head, computed in float32."""
    heads, dtype = q.shape[2], v.dtype
    q, k, v = (rearrange(leaf.astype(jnp.float32), "n p h d -> (n h) p d") for leaf in (q, k, v))
    # The queries are scaled, not the weights, of which there are many more.
    out = _attend(q / math.sqrt(q.shape[-1]), k, v)
    return rearrange(out, "(n h) p d -> n p h d", h=heads).astype(dtype)


@jax.custom_vjp
def _attend(q: _Sequences, k: _Keys, v: _Keys) -> _Sequences:
    return _forward(q, k, v)[0]


def _forward(q: _Sequences, k: _Keys, v: _Keys) -> tuple[_Sequences, tuple[Array, ...]]:
    def some(q: Array, k: Array, v: Array) -> tuple[Array, Array]:
        logits = q @ k.T
        highest = logits.max(-1, keepdims=True)
        weights = jnp.exp(logits - highest)
        total = weights.sum(-1, keepdims=True)
        return (weights @ v) / total, highest + jnp.log(total)

    def one(sequence: tuple[Array, Array, Array]) -> tuple[Array, Array]:
        q, k, v = sequence
        parts = _parts(len(q), len(k))
        if parts == 1:
            return some(q, k, v)
        found = jax.lax.map(lambda part: some(part, k, v), _cut(q, parts))
        return jax.tree.map(jnp.concatenate, found)

    out, normaliser = _in_parts(one, (q, k, v))
    return out, (q, k, v, out, normaliser)


def _backward(saved: tuple[Array, ...], gradient: _Sequences) -> tuple[_Sequences, _Keys, _Keys]:
    def some(k: Array, v: Array, rows: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        q, out, normaliser, gradient = rows
        weights = jnp.exp(q @ k.T - normaliser)
        # The softmax's own term: Σ_j weights grad_weights.
        common = (gradient * out).sum(-1, keepdims=True)
        grad_logits = weights * (gradient @ v.T - common)
        # Transposed in memory first: products that transpose as they go take three times as long.
        transposed = jax.lax.optimization_barrier((grad_logits.T, weights.T))
        return grad_logits @ k, transposed[0] @ q, transposed[1] @ gradient

    def one(sequence: tuple[Array, ...]) -> tuple[Array, Array, Array]:
        q, k, v, *rest = sequence
        rows = (q, *rest)
        parts = _parts(len(q), len(k))
        if parts == 1:
            return some(k, v, rows)

        def add(sums: tuple[Array, Array], rows: tuple[Array, ...]) -> tuple[Any, Array]:
            grad_q, *grads = some(k, v, rows)
            return jax.tree.map(jnp.add, sums, tuple(grads)), grad_q

        zeros = (jnp.zeros_like(k), jnp.zeros_like(v))
        sums, grad_q = jax.lax.scan(add, zeros, jax.tree.map(lambda x: _cut(x, parts), rows))
        return (jnp.concatenate(grad_q), *sums)

    return _in_parts(one, (*saved, gradient))


_attend.defvjp(_forward, _backward)


def _parts(queries: int, keys: int) -> int:
    """Into how many equal parts the queries of a sequence are cut, for `_WEIGHTS` weights or fewer
    in each; 1 where they cannot be."""
    wanted = -(-queries * keys // _WEIGHTS)
    allowed = range(wanted, queries // _FEWEST + 1)
    return next((parts for parts in allowed if queries % parts == 0), 1)


def _cut(rows: Array, parts: int) -> Array:
    return rows.reshape(parts, -1, *rows.shape[1:])


def _in_parts(one: Callable[[tuple[Array, ...]], Any], arrays: tuple[Array, ...]) -> Any:
    """`one` of each sequence of `arrays`, queries and keys first, `_WEIGHTS` weights at a time."""
    sequences, queries = arrays[0].shape[:2]
    at_once = min(sequences, max(1, _WEIGHTS // (queries * arrays[1].shape[1])))
    while sequences % at_once:
        at_once -= 1
    if at_once == sequences:
        return jax.vmap(one)(arrays)
    # Not a batch of one: XLA's products of batches are slower than those of matrices.
    return jax.lax.map(one, arrays, batch_size=at_once if at_once > 1 else None)
