"""The blocks that turn an image network into a space-time network (Bar-Tal et al. 2024, Lumiere,
section 3.1). Both start as the identity, leave images as they are, and take each frame's condition.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.blocks.residual import scale_shift
from vdm_jax.models.blocks.settings import BlockSettings
from vdm_jax.models.blocks.temporal import FrameConvolution, TemporalAttention, apply_to_clip


class FactorisedConvolution(nn.Module):
    """norm, swish, convolution over space, norm, scale and shift by the condition, swish,
    convolution over three frames, and a projection that starts at zero; plus the input.

    The convolution-based block of Lumiere (figure 4b) without the image layers before it, which
    alone are conditioned there.
    """

    settings: BlockSettings = BlockSettings()
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE
    REACH = 1  # pixels, of the convolution over space

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "bf h w c"],
        frames: int,
        condition: Float[Array, "bf d"],
        num_images: int = 0,
    ) -> Float[Array, "bf h w c"]:
        """`x` has batch and frames folded. `frames` counts a clip's frames and its images."""
        channels, groups = x.shape[-1], self.settings.norm_groups
        h = nn.swish(layers.group_norm(channels, groups, "norm_space")(x))
        h = layers.conv(channels, dtype=self.dtype, name="space")(h.astype(self.dtype))
        h = layers.group_norm(channels, groups, "norm_time")(h)
        h = nn.swish(scale_shift(h, condition, zero=True, dtype=self.dtype).astype(h.dtype))
        over_time = FrameConvolution(channels, dtype=self.dtype, name="time")
        project = layers.dense(channels, dtype=self.dtype, zero=True, name="projection")

        def mix(clip: Array) -> Array:
            return project(over_time(clip))

        h = h.astype(self.dtype)
        return x + apply_to_clip(self.layout, h, frames, num_images, mix, jnp.zeros_like)


class TemporalAttentionBlock(nn.Module):
    """Scale and shift by the condition, `depth` layers of attention over frames in a row, and a
    projection that starts at zero; plus the input.

    The attention-based block of Lumiere (figure 4c).
    """

    settings: BlockSettings = BlockSettings()
    depth: int = 1
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "bf h w c"],
        frames: int,
        condition: Float[Array, "bf d"],
        num_images: int = 0,
    ) -> Float[Array, "bf h w c"]:
        """`x` has batch and frames folded. `frames` counts a clip's frames and its images."""
        channels = x.shape[-1]
        h = scale_shift(x, condition, zero=True, dtype=self.dtype).astype(x.dtype)
        for number in range(self.depth):
            layer = TemporalAttention(
                self.settings, self.dtype, self.layout, name=f"attention_{number}"
            )
            h = layer(h, frames, num_images)
        project = layers.dense(channels, dtype=self.dtype, zero=True, name="projection")

        def mix(clip: Array) -> Array:
            return project(clip.astype(self.dtype))

        return x + apply_to_clip(self.layout, h, frames, num_images, mix, jnp.zeros_like)
