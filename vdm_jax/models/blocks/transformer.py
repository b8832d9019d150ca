"""The transformer of a latent U-Net: pixels attend to the pixels of their frame and to a text
(Rombach et al. 2022, section 3.3 and appendix E.2.1)."""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.blocks.cross import attend_tokens
from vdm_jax.models.blocks.heads import from_heads, to_heads
from vdm_jax.models.blocks.settings import LatentSettings
from vdm_jax.models.blocks.slots import ClipContext, Place, Slot, Slots, fill
from vdm_jax.models.ops import attention, product

Sequences = Float[Array, "bf p c"]
Heads = Float[Array, "bf p heads d"]
_EPSILON = 1e-6  # of the normalisation of a frame
_MLP_MULTIPLE = 4  # hidden features of an MLP for each of its outputs


class SpatialTransformer(nn.Module):
    """norm, a linear map, transformer blocks over the pixels of each frame, a linear map that
    starts at zero; plus the input.

    Attributes:
      place: of the slots in it; its name is not used.
    """

    place: Place
    settings: LatentSettings = LatentSettings()
    slots: Slots = Slots()

    @nn.compact
    def __call__(
        self, x: Float[Array, "bf h w c"], context: ClipContext
    ) -> Float[Array, "bf h w c"]:
        height, channels, dtype = x.shape[1], x.shape[-1], self.place.dtype
        groups = self.settings.norm_groups
        h = layers.group_norm(channels, groups, "norm", epsilon=_EPSILON)(x).astype(dtype)
        h = rearrange(h, "n h w c -> n (h w) c")
        h = layers.dense(channels, dtype=dtype, name="project_in")(h)
        for i in range(self.place.depth):
            block = TransformerBlock(self.place, self.slots.self_attention, name=f"block_{i}")
            h = block(h, context)
            place = dataclasses.replace(self.place, name=f"temporal_{i}")
            h = fill(self.slots.in_transformer, place, h, context)
        h = layers.dense(channels, dtype=dtype, zero=True, name="project_out")(h)
        return x.astype(dtype) + rearrange(h, "n (h w) c -> n h w c", h=height)


class TransformerBlock(nn.Module):
    """Self-attention, attention to the text, and a gated MLP, each behind a normalisation and plus
    its input.

    Attributes:
      place: of the transformer.
      self_attention: in place of `SelfAttention`.
    """

    place: Place
    self_attention: Slot | None = None

    @nn.compact
    def __call__(self, h: Sequences, context: ClipContext) -> Sequences:
        place = dataclasses.replace(self.place, name="attention_self")
        make = self.self_attention or SelfAttention.at
        h = h + make(place)(layer_norm("norm_self")(h), context)
        text = TextAttention(place.heads, place.dtype, place.layout, name="attention_text")
        h = h + text(layer_norm("norm_text")(h), context)
        mlp = GatedMLP(place.dtype, name="mlp")
        return h + mlp(layer_norm("norm_mlp")(h))


class SelfAttention(nn.Module):
    """Self-attention among the elements of each sequence. A subclass may replace `attend`.

    Queries, keys and values are linear in each element, so a subclass that attends to other frames
    gathers their keys and values, and has the same parameters.

    Attributes:
      zero: whether the last map starts at zero.
    """

    heads: int
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE
    zero: bool = False
    LABEL = "space"

    @classmethod
    def at(cls, place: Place) -> "SelfAttention":
        """The attention at a place."""
        return cls(place.heads, place.dtype, place.layout, name=place.name)

    def attention_flops(self, h, *_) -> int:
        """Operations of the two products for `h` (n, p, c), without the projections."""
        return 4 * h.shape[0] * h.shape[1] ** 2 * h.shape[2]

    @nn.compact
    def __call__(self, h: Sequences, context: ClipContext) -> Sequences:
        head_dim = h.shape[-1] // self.heads
        q, k, v = (
            to_heads(self.heads, head_dim, dtype=self.dtype, name=name)(h)
            for name in ("query", "key", "value")
        )
        attended = self.attend(q, k, v, context)
        return from_heads(h.shape[-1], dtype=self.dtype, zero=self.zero)(attended)

    @nn.nowrap
    def attend(self, q: Heads, k: Heads, v: Heads, context: ClipContext) -> Heads:
        """Attention of all queries; a row of `q`, `k` and `v` is a frame."""
        return attention.attend_pixels(q, k, v)


class TextAttention(nn.Module):
    """Attention of pixels to the tokens of their clip's text, or of their image's.

    Attributes:
      zero: whether the last map starts at zero.
    """

    heads: int
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE
    zero: bool = False
    LABEL = "text"

    def attention_flops(self, h, context) -> int:
        """Operations of the two products for `h` (n, p, c), without the projections."""
        return 4 * math.prod(h.shape) * context.tokens.shape[-2]

    @nn.compact
    def __call__(self, h: Sequences, context: ClipContext) -> Sequences:
        head_dim, frames = h.shape[-1] // self.heads, context.frames
        q, k, v = (
            to_heads(self.heads, head_dim, dtype=self.dtype, name=name)(inputs)
            for name, inputs in (("query", h), ("key", context.tokens), ("value", context.tokens))
        )
        q = self.layout.unfold(q, frames)
        attended = attend_tokens(q, k, v, None, frames - context.num_images)
        out = from_heads(h.shape[-1], dtype=self.dtype, zero=self.zero)
        return out(self.layout.fold(attended))


class GatedMLP(nn.Module):
    """A linear map of its input times the GELU of another, then a linear map (GEGLU, Shazeer
    2020).

    Attributes:
      zero: whether the last map starts at zero.
    """

    dtype: DTypeLike = jnp.float32
    zero: bool = False

    @nn.compact
    def __call__(self, h: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        # Two maps, not one that is cut in the middle: each is sharded by itself.
        axes = (layers.IN, None, layers.HIDDEN)
        both = layers.DenseGeneral(
            (2, _MLP_MULTIPLE * h.shape[-1]),
            dtype=self.dtype,
            kernel_init=layers.named(nn.initializers.lecun_normal(), *axes, dtype=self.dtype),
            bias_init=layers.named(nn.initializers.zeros, *axes[1:], dtype=self.dtype),
            dot_general=product.linear,
            name="linear_in",
        )(h)
        hidden = both[..., 0, :] * nn.gelu(both[..., 1, :], approximate=False)
        out = layers.dense(
            h.shape[-1],
            dtype=self.dtype,
            zero=self.zero,
            axes=(layers.HIDDEN, layers.OUT),
            name="linear_out",
        )
        return out(hidden)


def layer_norm(name: str) -> nn.LayerNorm:
    """Normalisation over the last axis, in float32."""
    return layers.LayerNorm(
        1e-5,
        dtype=jnp.float32,
        scale_init=layers.named(nn.initializers.ones, layers.CHANNELS),
        bias_init=layers.named(nn.initializers.zeros, layers.CHANNELS),
        name=name,
    )
