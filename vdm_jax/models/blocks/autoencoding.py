"""The blocks of the autoencoders of latent diffusion (Rombach et al. 2022, appendix G).

They take no condition. Frames are folded into the batch; only `FrameMixing` and `FrameBlending` mix
them.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.ops import attention, product

# Constants of the published networks: the second one is that of the temporal blocks.
EPSILON, TEMPORAL_EPSILON = 1e-6, 1e-5


class Residual(nn.Module):
    """norm, swish, conv, norm, swish, conv; plus the input, through a matrix where channels change.

    Attributes:
      groups: of the normalisations, a divisor of all channels.
    """

    features: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w _"]:
        inner, outer = (layers.IN, layers.HIDDEN), (layers.HIDDEN, layers.OUT)
        h = layers.group_norm(x.shape[-1], self.groups, "norm_in", epsilon=EPSILON)(x)
        h = nn.swish(h).astype(self.dtype)
        h = layers.conv(self.features, dtype=self.dtype, axes=inner, name="conv_in")(h)
        h = layers.group_norm(self.features, self.groups, "norm_out", epsilon=EPSILON)(h)
        h = nn.swish(h).astype(self.dtype)
        h = layers.conv(self.features, dtype=self.dtype, axes=outer, name="conv_out")(h)
        if x.shape[-1] != self.features:
            x = layers.dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x.astype(self.dtype) + h


class Attention(nn.Module):
    """Self-attention with one head over the pixels of each frame, plus the input."""

    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        height, channels = x.shape[1], x.shape[-1]
        h = layers.group_norm(channels, self.groups, "norm", epsilon=EPSILON)(x).astype(self.dtype)
        h = rearrange(h, "n h w c -> n (h w) c")
        inner, outer = (layers.IN, layers.HIDDEN), (layers.HIDDEN, layers.OUT)
        q, k, v = (
            layers.dense(channels, dtype=self.dtype, axes=inner, name=name)(h)[:, :, None]
            for name in ("query", "key", "value")
        )
        h = attention.attend_pixels(q, k, v)[:, :, 0]
        h = layers.dense(channels, dtype=self.dtype, axes=outer, name="out")(h)
        return x.astype(self.dtype) + rearrange(h, "n (h w) c -> n h w c", h=height)


class Downsample(nn.Module):
    """Halves height and width by a convolution of stride 2, with a row and a column of zeros after
    the image and none before it."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h//2 w//2 _"]:
        return layers.conv(self.features, dtype=self.dtype, stride=2, pad=(0, 1), name="conv")(x)


class FrameConvolution(layers.GivenParams, nn.Module):
    """A convolution over three frames at each pixel, zeros beyond the ends of the clip.

    Its kernel has the five axes of a convolution over frames, rows and columns, as published. Each
    tap is a matrix product.

    Attributes:
      zero: whether it starts at zero.
    """

    features: int
    dtype: DTypeLike = jnp.float32
    zero: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w _"]:
        frames, channels = x.shape[1], x.shape[-1]
        init = nn.initializers.zeros if self.zero else nn.initializers.lecun_normal()
        names = (None, None, None, layers.IN, layers.OUT)
        shape = (3, 1, 1, channels, self.features)
        kernel = self.param("kernel", layers.named(init, *names, dtype=self.dtype), shape)
        zeros = layers.named(nn.initializers.zeros, layers.OUT, dtype=self.dtype)
        bias = self.param("bias", zeros, (self.features,))
        x, kernel, bias = (leaf.astype(self.dtype) for leaf in (x, kernel, bias))
        x = jnp.pad(x, [(0, 0), (1, 1), (0, 0), (0, 0), (0, 0)])
        last_and_first = (((x.ndim - 1,), (0,)), ((), ()))
        taps = [
            product.linear(x[:, tap : tap + frames], kernel[tap, 0, 0], last_and_first)
            for tap in range(3)
        ]
        return sum(taps) + bias


class FrameMixing(layers.GivenParams, nn.Module):
    """A residual block over space, and one over frames whose result is blended with it (SVD,
    Blattmann et al. 2023, appendix D).

    The blend is (1 − σ(mix)) spatial + σ(mix) temporal with a learned number `mix`. The temporal
    normalisations take their statistics over all frames of a clip.
    """

    features: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "bf h w c"], frames: int) -> Float[Array, "bf h w _"]:
        """`x` has batch and frames folded."""
        x = Residual(self.features, self.groups, self.dtype, name="spatial")(x)
        return _blended(
            self, x, frames, _TemporalResidual(self.groups, self.dtype, name="temporal")
        )


class FrameBlending(layers.GivenParams, nn.Module):
    """A residual block over frames whose result is blended with its input, as in `FrameMixing`. Its
    last convolution starts at zero, so it starts as the identity."""

    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "bf h w c"], frames: int) -> Float[Array, "bf h w c"]:
        """`x` has batch and frames folded."""
        temporal = _TemporalResidual(self.groups, self.dtype, zero=True, name="temporal")
        return _blended(self, x, frames, temporal)


def _blended(
    module: nn.Module, x: Float[Array, "bf h w c"], frames: int, temporal: nn.Module
) -> Float[Array, "bf h w c"]:
    """(1 − σ(mix)) x + σ(mix) temporal(x) with the parameter `mix` of the module."""
    clip = rearrange(x, "(b f) h w c -> b f h w c", f=frames)
    mix = module.param("mix", layers.named(nn.initializers.zeros, None), (1,))
    share = jax.nn.sigmoid(mix.astype(jnp.float32)).astype(module.dtype)
    blended = (1 - share) * clip + share * temporal(clip)
    return rearrange(blended, "b f h w c -> (b f) h w c")


class _TemporalResidual(nn.Module):
    groups: int
    dtype: DTypeLike
    zero: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        h = self._norm(x, "norm_in")
        h = FrameConvolution(x.shape[-1], self.dtype, name="conv_in")(h)
        h = self._norm(h, "norm_out")
        return x + FrameConvolution(x.shape[-1], self.dtype, self.zero, name="conv_out")(h)

    def _norm(self, x: Float[Array, "b f h w c"], name: str) -> Float[Array, "b f h w c"]:
        norm = layers.group_norm(x.shape[-1], self.groups, name, epsilon=TEMPORAL_EPSILON)
        normalised = norm(rearrange(x, "b f h w c -> b (f h) w c"))
        swished = nn.swish(normalised).astype(self.dtype)
        return rearrange(swished, "b (f h) w c -> b f h w c", f=x.shape[1])
