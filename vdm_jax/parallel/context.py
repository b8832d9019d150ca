"""Attention of sequences whose tokens are spread over devices (context parallelism).

These functions run inside of `jax.shard_map`: each device has a part of the tokens, in order, and
returns the attention of its own queries to the keys of all devices. Nothing of the size of all
queries by all keys exists anywhere.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

Heads = Float[Array, "b n heads d"]
Segments = Int[Array, "b n"]
_NEVER = -1e30  # logit without weight; finite, because differences of it must be


def ulysses(
    attend: Callable[[Heads, Heads, Heads, Any], Heads],
    q: Heads,
    k: Heads,
    v: Heads,
    segments: Segments | None,
    *,
    axis: str,
) -> Heads:
    """Tokens are exchanged for heads by one all-to-all each way (Jacobs et al. 2023).

    attend: attention of all tokens, `ops.attention.attend_rows`. The number of devices along the
    mesh's `axis` divides the number of heads.
    """
    exchange = functools.partial(jax.lax.all_to_all, axis_name=axis, tiled=True)
    q, k, v = (exchange(one, split_axis=2, concat_axis=1) for one in (q, k, v))
    if segments is not None:
        segments = jax.lax.all_gather(segments, axis, axis=1, tiled=True)
    attended = attend(q, k, v, segments)
    return exchange(attended, split_axis=1, concat_axis=2)


def ring(
    q: Heads, k: Heads, v: Heads, segments: Segments | None, *, axis: str, devices: int
) -> Heads:
    """Keys and values go round the devices, and each adds what its queries get of them (Liu et al.
    2023, Ring Attention). For any number of heads.

    devices: along the mesh's `axis`.
    """
    scale = 1 / math.sqrt(q.shape[-1])
    ids = jnp.zeros(q.shape[:2], jnp.int32) if segments is None else segments
    onwards = [(device, (device + 1) % devices) for device in range(devices)]

    @jax.checkpoint
    def attend_part(carry: tuple, part: tuple) -> tuple:
        """Adds the attention to a part of the keys: the softmax's sums with its highest logit."""
        (added, total, highest), (k, v, key_ids) = carry, part
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32) * scale
        logits = jnp.where(ids[:, None, :, None] == key_ids[:, None, None, :], logits, _NEVER)
        new = jnp.maximum(highest, logits.max(-1))
        weights, kept = jnp.exp(logits - new[..., None]), jnp.exp(highest - new)
        products = jnp.einsum(
            "bhqk,bkhd->bhqd", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return added * kept[..., None] + products, total * kept + weights.sum(-1), new

    def step(carry: tuple, _: None) -> tuple[tuple, None]:
        found, part = carry
        # Asked for first, so that the next part is on its way while this one is computed.
        following = jax.tree.map(lambda leaf: jax.lax.ppermute(leaf, axis, onwards), part)
        return (attend_part(found, part), following), None

    b, n, heads, d = q.shape
    start = (
        jnp.zeros((b, heads, n, d), jnp.float32),
        jnp.zeros((b, heads, n), jnp.float32),
        jnp.full((b, heads, n), _NEVER, jnp.float32),
    )
    ((added, total, _), _), _ = jax.lax.scan(step, (start, (k, v, ids)), length=devices)
    return rearrange(added / total[..., None], "b h n d -> b n h d").astype(v.dtype)
