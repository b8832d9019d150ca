"""Attention from pixels to the tokens of a text."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vdm_jax.models import layers
from vdm_jax.models.blocks.heads import from_heads, to_heads
from vdm_jax.models.blocks.settings import BlockSettings


class CrossAttention(nn.Module):
    """Attention to tokens, plus the input. Starts as the identity.

    The pixels of a clip attend to the tokens of its text. Each of the `num_images` appended images
    attends to the tokens of its own text.
    """

    settings: BlockSettings = BlockSettings()
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE
    LABEL = "text"
    STATIC = (4,)  # `num_images`, for `layers.remat`

    def attention_flops(self, x, tokens, *_) -> int:
        """Operations of the two products for `x` (b f, h, w, c), without the projections."""
        heads, head_dim = self.settings.heads(x.shape[-1])
        return 4 * math.prod(x.shape[:3]) * tokens.shape[-2] * heads * head_dim

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "bf h w c"],
        tokens: Float[Array, "b items l d"],
        token_mask: Bool[Array, "b items l"],
        num_images: int = 0,
    ) -> Float[Array, "bf h w c"]:
        """`items` is 1 + num_images, the clip's text first. Masked-out tokens have no weight."""
        batch, height, channels = len(tokens), x.shape[1], x.shape[-1]
        frames = x.shape[0] // batch - num_images
        heads, head_dim = self.settings.heads(channels)
        h = layers.group_norm(channels, self.settings.norm_groups, "norm")(x).astype(self.dtype)
        q = to_heads(heads, head_dim, dtype=self.dtype, name="query")(
            rearrange(self.layout.unfold(h, x.shape[0] // batch), "b f h w c -> b f (h w) c")
        )
        tokens = layers.LayerNorm(
            dtype=jnp.float32,
            scale_init=layers.named(nn.initializers.ones, layers.CHANNELS),
            bias_init=layers.named(nn.initializers.zeros, layers.CHANNELS),
            name="token_norm",
        )(tokens).astype(self.dtype)
        k, v = (
            to_heads(heads, head_dim, dtype=self.dtype, name=name)(tokens)
            for name in ("key", "value")
        )
        h = from_heads(channels, dtype=self.dtype)(attend_tokens(q, k, v, token_mask, frames))
        return x + self.layout.fold(rearrange(h, "b f (h w) c -> b f h w c", h=height))


def attend_tokens(
    q: Float[Array, "b f p heads d"],
    k: Float[Array, "b items l heads d"],
    v: Float[Array, "b items l heads d"],
    mask: Bool[Array, "b items l"] | None,
    frames: int,
) -> Float[Array, "b f p heads d"]:
    """Attention of a clip's `frames` to the first item, and of each image to its own item.

    mask: False for tokens without weight; None = all have weight.
    """
    parts = []
    if frames:
        # The clip's frames share one set of keys, so they are one long row of queries.
        clip = jax.nn.dot_product_attention(
            rearrange(q[:, :frames], "b f p n d -> b (f p) n d"),
            k[:, 0],
            v[:, 0],
            mask=None if mask is None else mask[:, 0, None, None, :],
        )
        parts.append(rearrange(clip, "b (f p) n d -> b f p n d", f=frames))
    if q.shape[1] > frames:
        batch = len(q)
        q, k, v = (
            rearrange(a, "b i ... -> (b i) ...") for a in (q[:, frames:], k[:, 1:], v[:, 1:])
        )
        if mask is not None:
            mask = rearrange(mask[:, 1:], "b i l -> (b i) 1 1 l")
        images = jax.nn.dot_product_attention(q, k, v, mask=mask)
        parts.append(rearrange(images, "(b i) p n d -> b i p n d", b=batch))
    return jnp.concatenate(parts, axis=1)
