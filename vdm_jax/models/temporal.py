"""Convolution over time, which the super-resolution models of a cascade mix frames by."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import layers


class TemporalConvolution(nn.Module):
    """norm, swish, convolution over three frames at each pixel; plus the input.

    The convolution starts at zero, so that the layer starts as the identity. Its three taps are one
    matrix product, whose outputs are shifted by a frame and added: nothing is rearranged. Beyond
    the clip's ends are zeros. The last `num_images` frames, independent images, are left as they
    are, and the clip does not see them.
    """

    norm_groups: int = 32
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE

    @nn.compact
    def __call__(
        self, x: Float[Array, "bf h w c"], frames: int, num_images: int = 0
    ) -> Float[Array, "bf h w c"]:
        """`x` has batch and frames folded, `frames` of them a clip, images included."""
        channels = x.shape[-1]
        h = layers.group_norm(channels, self.norm_groups, "norm")(x)
        h = nn.swish(h).astype(self.dtype)
        taps = nn.DenseGeneral(
            (3, channels),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=layers.named(
                nn.initializers.zeros, layers.IN, None, layers.OUT, dtype=self.dtype
            ),
            name="taps",
        )(self.layout.unfold(h, frames))
        bias = self.param(
            "bias", layers.named(nn.initializers.zeros, layers.OUT, dtype=self.dtype), (channels,)
        )
        clip = frames - num_images
        before, here, after = (taps[:, :clip, ..., tap, :] for tap in range(3))
        mixed = here + bias.astype(self.dtype)
        if clip:
            mixed += _shifted(before, 1) + _shifted(after, -1)
        mixed = jnp.pad(mixed, [(0, 0), (0, num_images), (0, 0), (0, 0), (0, 0)])
        return x + self.layout.fold(mixed)


def _shifted(x: Float[Array, "b f h w c"], by: int) -> Float[Array, "b f h w c"]:
    """Every frame's features moved on by one frame (1) or back (-1), zeros coming in."""
    padded = jnp.pad(x, [(0, 0), (max(by, 0), max(-by, 0)), (0, 0), (0, 0), (0, 0)])
    return padded[:, :-1] if by > 0 else padded[:, 1:]
