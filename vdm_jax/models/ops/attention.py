"""Self-attention over pixels and over frames: `jax.nn.dot_product_attention`, and on CPUs a kernel
of its own for each."""

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.models.ops import blocked_attention, few_frames

_FEW_FRAMES = 32  # most frames for which the CPU kernel is used
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


def attend_segments(
    q: Float[Array, "n p heads d"],
    k: Float[Array, "n l heads d"],
    v: Float[Array, "n l heads d"],
    q_segments: Int[Array, "n p"],
    k_segments: Int[Array, "n l"],
) -> Float[Array, "n p heads d"]:
    """Scaled dot-product attention of queries to the keys of their own segment.

    Every query needs a key in its segment.
    """
    mask = q_segments[:, None, :, None] == k_segments[:, None, None, :]
    return jax.nn.dot_product_attention(q, k, v, mask=mask)
