"""Holistically-nested edge detection (Xie & Tu 2015): the convolutions of VGG16, an edge map after
each of its five blocks, and their weighted sum."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import layers

# Of each channel, red first, of 255: VGG16's.
_MEANS = (122.67892, 116.66877, 104.00699)


class HED(nn.Module):
    """Images to soft edges.

    Attributes:
      widths, depths: channels and convolutions of each block. Those of VGG16 are published.
      dtype: of the computation.
    """

    widths: tuple[int, ...] = (64, 128, 256, 512, 512)
    depths: tuple[int, ...] = (2, 2, 3, 3, 3)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n h w 1"]:
        """images: from 0 to 255, red first. Returns the probability of an edge at each pixel."""
        # The published network takes blue first.
        h = (images - jnp.array(_MEANS))[..., ::-1].astype(self.dtype)
        size, sides = images.shape[1:3], []
        for block, (width, depth) in enumerate(zip(self.widths, self.depths, strict=True)):
            if block:
                h = nn.max_pool(h, (2, 2), (2, 2), "SAME")
            for i in range(depth):
                h = nn.relu(layers.conv(width, dtype=self.dtype, name=f"conv_{block}_{i}")(h))
            side = layers.dense(1, dtype=jnp.float32, name=f"side_{block}")(h)
            shape = (side.shape[0], *size, 1)
            sides.append(jax.image.resize(side, shape, "bilinear"))
        fuse = layers.dense(1, dtype=jnp.float32, name="fuse")
        return nn.sigmoid(fuse(jnp.concatenate(sides, axis=-1)))
