"""AnimateDiff's motion modules (Guo et al. 2024, section 4.2): temporal transformers that turn a
latent image U-Net into a video U-Net, whichever image model of its kind it is."""

import dataclasses
import math

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.blocks.latent_residual import over_clip
from vdm_jax.models.blocks.slots import ClipContext, Place
from vdm_jax.models.blocks.temporal import apply_to_clip, temporal_mask
from vdm_jax.models.blocks.transformer import GatedMLP, SelfAttention, layer_norm
from vdm_jax.models.ops import attention

_EPSILON = 1e-6  # of the normalisation before the first map


@dataclasses.dataclass(frozen=True, kw_only=True)
class MotionModules:
    """A slot's motion modules: one after each residual block and its attention, for
    `Slots.after_attention`. The defaults are AnimateDiff v3's.

    Attributes:
      heads: of the attention over frames: one number, or one for each level.
      depth: transformer blocks of a module.
      max_frames: the longest clip; the number of positions that were trained.
      norm_groups: of the normalisation before the first map.
      norm_over_frames: whether that takes mean and variance over all frames of a clip, as diffusers
        does, or over each frame, as AnimateDiff's own code does.
      middle: whether the middle has a module too, as in version 2.
    """

    heads: int | tuple[int, ...] = 8
    depth: int = 1
    max_frames: int = 32
    norm_groups: int = 32
    norm_over_frames: bool = True
    middle: bool = False

    def __call__(self, place: Place) -> nn.Module | None:
        if place.part == "middle" and not self.middle:
            return None
        heads = self.heads if isinstance(self.heads, int) else self.heads[place.level]
        if place.channels % heads:
            raise ValueError(
                f"heads = {heads} of the motion modules must divide {place.channels}, the channels "
                f"of level {place.level}"
            )
        return MotionModule(self, heads, place.dtype, place.layout, name=place.name)


class MotionModule(nn.Module):
    """norm, a linear map, transformer blocks over the frames at each pixel, a linear map that
    starts at zero; plus the input. Images stay as they are.

    Attributes:
      settings: of all modules of a network.
      heads: of this one.
    """

    settings: MotionModules
    heads: int
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE

    @nn.compact
    def __call__(
        self, x: Float[Array, "bf h w c"], context: ClipContext
    ) -> Float[Array, "bf h w c"]:
        """Raises ValueError for a clip of more than `max_frames` frames."""
        settings, frames = self.settings, context.frames
        if frames - context.num_images > settings.max_frames:
            raise ValueError(
                f"{frames - context.num_images} frames: the motion modules have positions for "
                f"{settings.max_frames}; sample longer videos by windows"
            )
        height, width, channels = x.shape[1:]
        norm = layers.group_norm(channels, settings.norm_groups, "norm", epsilon=_EPSILON)
        if settings.norm_over_frames:
            norm = over_clip(norm, self.layout, context)
        h = self.layout.unfold(norm(x).astype(self.dtype), frames)
        # Where devices hold parts of the frames, they hold parts of the pixels between the folds.
        h = self.layout.fold(rearrange(h, "b f h w c -> b (h w) f c"))
        h = layers.dense(channels, dtype=self.dtype, name="project_in")(h)
        for i in range(settings.depth):
            h = _Block(self.heads, self.dtype, self.layout, name=f"block_{i}")(h, context)
        h = layers.dense(channels, dtype=self.dtype, zero=True, name="project_out")(h)
        h = rearrange(self.layout.unfold(h, height * width), "b (h w) f c -> b f h w c", h=height)
        h, images = self.layout.fold(h), context.num_images
        return x + apply_to_clip(self.layout, h, frames, images, lambda clip: clip, jnp.zeros_like)


class _Block(nn.Module):
    """Two layers of attention over frames, whose inputs have the frames' positions added, and a
    gated MLP, each behind a normalisation and plus its input."""

    heads: int
    dtype: DTypeLike
    layout: layers.Layout

    @nn.compact
    def __call__(self, h: Float[Array, "bp f c"], context: ClipContext) -> Float[Array, "bp f c"]:
        positions = sinusoidal_positions(h.shape[1], h.shape[2])
        for i in range(2):
            attend = FrameAttention(self.heads, self.dtype, self.layout, name=f"attention_{i}")
            h = h + attend(layer_norm(f"norm_{i}")(h) + positions, context)
        return h + GatedMLP(self.dtype, name="mlp")(layer_norm("norm_mlp")(h))


class FrameAttention(SelfAttention):
    """Self-attention over the frames at each pixel, images apart."""

    LABEL = "time"

    @nn.nowrap
    def attend(self, q: Array, k: Array, v: Array, context: ClipContext) -> Array:
        images = context.num_images
        mask = temporal_mask(context.frames, images) if images else None
        return attention.attend_frames(q, k, v, None, mask)


def sinusoidal_positions(frames: int, channels: int) -> Float[Array, "f c"]:
    """Sine and cosine of the frame's number, by turns, at `channels / 2` frequencies from 1 down to
    nearly 1 / 10,000 (Vaswani et al. 2017, section 3.5)."""
    frequencies = jnp.exp(-math.log(10_000.0) * jnp.arange(0, channels, 2) / channels)
    angles = jnp.arange(frames)[:, None] * frequencies
    return rearrange(jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1), "f d two -> f (d two)")
