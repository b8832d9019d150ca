"""Halving and doubling: height and width, and the frames of a clip."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.blocks.temporal import FrameConvolution, apply_to_clip


class Downsample(nn.Module):
    """Halves height and width by a convolution of stride 2."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 _"]:
        return layers.conv(self.features, dtype=self.dtype, stride=2, name="conv")(x)


class Upsample(nn.Module):
    """Doubles height and width by nearest-neighbour resizing and a convolution.

    A transposed convolution would leave a checkerboard, and its gradient is slow on GPUs.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n 2*h 2*w _"]:
        x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return layers.conv(self.features, dtype=self.dtype, name="conv")(x)


class TemporalResize(nn.Module):
    """Halves a clip's frames by keeping every second, or doubles them by repeating each.

    A convolution over three frames, which starts as the identity, comes before halving and after
    doubling. Images stay as they are.
    """

    doubles: bool
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE

    @nn.compact
    def __call__(
        self, x: Float[Array, "bf h w c"], frames: int, num_images: int = 0
    ) -> Float[Array, "bg h w c"]:
        """`x` has batch and frames folded. `frames` counts a clip's frames and its images."""
        mix = FrameConvolution(x.shape[-1], init="identity", dtype=self.dtype, name="conv")

        def resized(clip: Array) -> Array:
            return mix(jnp.repeat(clip, 2, axis=1)) if self.doubles else mix(clip)[:, ::2]

        return apply_to_clip(self.layout, x, frames, num_images, resized)
