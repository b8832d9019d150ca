"""Attention over the pixels of a frame."""

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.blocks.heads import from_heads, to_heads
from vdm_jax.models.blocks.settings import BlockSettings
from vdm_jax.models.ops import attention


class SpatialAttention(nn.Module):
    """Self-attention over the pixels of each frame, plus the input. Starts as the identity."""

    settings: BlockSettings = BlockSettings()
    dtype: DTypeLike = jnp.float32
    LABEL = "space"

    def attention_flops(self, x) -> int:
        """Operations of the two products for `x` (n, h, w, c), without the projections."""
        frames, height, width, channels = x.shape
        heads, head_dim = self.settings.heads(channels)
        return 4 * frames * (height * width) ** 2 * heads * head_dim

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """`n` is batch times frames."""
        height, channels = x.shape[1], x.shape[-1]
        h = layers.group_norm(channels, self.settings.norm_groups, "norm")(x).astype(self.dtype)
        h = rearrange(h, "n h w c -> n (h w) c")
        heads, head_dim = self.settings.heads(channels)
        q, k, v = (
            to_heads(heads, head_dim, dtype=self.dtype, name=name)(h)
            for name in ("query", "key", "value")
        )
        h = from_heads(channels, dtype=self.dtype)(attention.attend_pixels(q, k, v))
        return x + rearrange(h, "n (h w) c -> n h w c", h=height)
