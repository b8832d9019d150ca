"""Self-attention over pixels and over frames: `jax.nn.dot_product_attention`, and on CPUs a kernel
of its own for each."""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.models.ops import blocked_attention, few_frames, splash

_FEW_FRAMES = 32  # most frames for which the CPU kernel is used
_SCORES = 2**28  # of queries and keys in memory at a time, 1 GiB
_NEVER = -1e30  # logit without weight; finite, because differences of it must be


def attend_pixels(
    q: Float[Array, "n p heads d"], k: Float[Array, "n l heads d"], v: Float[Array, "n l heads d"]
) -> Float[Array, "n p heads d"]:
    """Scaled dot-product attention of a few long sequences."""
    plain = jax.nn.dot_product_attention
    return jax.lax.platform_dependent(q, k, v, cpu=blocked_attention.attend, default=plain)


def attend_frames(
    q: Float[Array, "n f heads d"],
    k: Float[Array, "n f heads d"],
    v: Float[Array, "n f heads d"],
    bias: Float[Array, "heads f f"] | None,
    mask: Bool[Array, "f f"] | None,
) -> Float[Array, "n f heads d"]:
    """Scaled dot-product attention of many short sequences, with an optional bias a head and an
    optional mask (True where a query may attend to a key)."""

    def plain(q: Array, k: Array, v: Array, *bias: Array) -> Array:
        added = bias[0][None] if bias else None
        return jax.nn.dot_product_attention(q, k, v, bias=added, mask=mask)

    def on_cpu(q: Array, k: Array, v: Array, *bias: Array) -> Array:
        shape = (q.shape[2], q.shape[1], q.shape[1])
        bias = bias[0].astype(jnp.float32) if bias else jnp.zeros(shape, jnp.float32)
        if mask is not None:
            bias = jnp.where(mask, bias, _NEVER)
        wide = (leaf.astype(jnp.float32) for leaf in (q, k, v))
        return few_frames.attend(*wide, rearrange(bias, "h i j -> i j h")).astype(v.dtype)

    arrays = (q, k, v) if bias is None else (q, k, v, bias)
    if q.shape[1] > _FEW_FRAMES:
        return plain(*arrays)
    return jax.lax.platform_dependent(*arrays, cpu=on_cpu, default=plain)


def attend_tokens(
    q: Float[Array, "n p heads d"],
    k: Float[Array, "n l heads d"],
    v: Float[Array, "n l heads d"],
    segments: tuple[Int[Array, "n p"], Int[Array, "n l"]] | None = None,
    *,
    most: int = _SCORES,
) -> Float[Array, "n p heads d"]:
    """Scaled dot-product attention of sequences of any length.

    Where there would be more than `most` scores, a part of the queries is computed at a time, and
    again for the gradient, so that memory grows with the length and not with its square.

    segments: the segment of each query and key; queries attend to the keys of their own, of which
    each has one. None = to all.
    """
    count, queries, heads, _ = q.shape
    size = max(1, min(queries, most // (count * heads * k.shape[1])))
    if size == queries:
        return _attend_once(q, k, v, segments)
    parts = -(-queries // size)
    size = -(-queries // parts)  # equal parts; the last query is repeated to fill the last one
    own = (q,) if segments is None else (q, segments[0])

    def split(x: Array) -> Array:
        missing = [(0, 0), (0, parts * size - queries)] + [(0, 0)] * (x.ndim - 2)
        return rearrange(jnp.pad(x, missing, mode="edge"), "n (k p) ... -> k n p ...", k=parts)

    @jax.checkpoint
    def one(part: tuple[Array, ...]) -> Array:
        return _attend_once(part[0], k, v, (part[1], segments[1]) if segments else None)

    attended = jax.lax.map(one, jax.tree.map(split, own))
    return rearrange(attended, "k n p ... -> n (k p) ...")[:, :queries]


def attend_rows(
    q: Float[Array, "n p heads d"],
    k: Float[Array, "n p heads d"],
    v: Float[Array, "n p heads d"],
    segments: Int[Array, "n p"] | None = None,
) -> Float[Array, "n p heads d"]:
    """`attend_tokens` among the tokens of each row. TPUs have a kernel for it, which is not spread
    over devices by the compiler: on a mesh this runs inside of `jax.shard_map`."""
    arrays = (q, k, v) if segments is None else (q, k, v, segments)

    def plain(q: Array, k: Array, v: Array, *segments: Array) -> Array:
        return attend_tokens(q, k, v, segments * 2 or None)

    if not splash.fits(q.shape):
        return plain(*arrays)
    return jax.lax.platform_dependent(*arrays, tpu=splash.attend, default=plain)


def _attend_once(
    q: Array, k: Array, v: Array, segments: tuple[Array, Array] | None
) -> Float[Array, "n p heads d"]:
    if segments is None:
        return attend_pixels(q, k, v)
    q_segments, k_segments = segments
    mask = q_segments[:, None, :, None] == k_segments[:, None, None, :]
    return jax.nn.dot_product_attention(q, k, v, mask=mask)
