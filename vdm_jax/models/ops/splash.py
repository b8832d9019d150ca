"""Self-attention of long rows of tokens on TPUs by a Pallas kernel that keeps no scores: JAX's
splash attention (after Dao et al. 2022, FlashAttention)."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float, Int

_LANES = 128  # head dimensions are multiples of it
_BLOCK = 512  # queries, and keys, of a block
_PADDING = -(2**30)  # the segment of the tokens that fill the last block


def fits(shape: Sequence[int]) -> bool:
    """Whether the kernel computes rows of a shape (n, p, heads, d), and they are long enough for
    it."""
    return shape[-1] % _LANES == 0 and shape[1] >= _BLOCK


def attend(
    q: Float[Array, "n p heads d"],
    k: Float[Array, "n p heads d"],
    v: Float[Array, "n p heads d"],
    segments: Int[Array, "n p"] | None = None,
    *,
    block: int = _BLOCK,
    interpret: bool = False,
) -> Float[Array, "n p heads d"]:
    """Scaled dot-product attention among the tokens of each row, or of each segment of it.

    On a mesh it runs inside of `jax.shard_map`: the compiler cannot spread the kernel. interpret:
    on any device, slowly, for tests.
    """
    # Imported when needed: Pallas takes its time.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernels
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    count, tokens, heads, width = q.shape
    missing = -tokens % block
    ids = jnp.zeros((count, tokens), jnp.int32) if segments is None else segments
    ids = jnp.pad(ids, ((0, 0), (0, missing)), constant_values=_PADDING)
    fill = ((0, 0), (0, missing), (0, 0), (0, 0))
    rows = [jnp.pad(one, fill) for one in (q * (1 / math.sqrt(width)), k, v)]
    q, k, v = (rearrange(one, "n p h d -> n h p d") for one in rows)
    size = tokens + missing
    names = ("q", "kv", "kv_compute", "q_dkv", "kv_dkv", "kv_dkv_compute", "q_dq", "kv_dq")
    kernel = kernels.make_splash_mha_single_device(
        masks.MultiHeadMask([masks.FullMask((size, size))] * heads),
        block_sizes=kernels.BlockSizes(**{f"block_{name}": block for name in names}),
        interpret=interpret,
    )
    attended = jax.vmap(kernel)(q, k, v, kernels.SegmentIds(q=ids, kv=ids))
    return rearrange(attended, "n h p d -> n p h d")[:, :tokens].astype(v.dtype)
