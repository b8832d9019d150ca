"""Blocks of video autoencoders whose frames depend on themselves and on earlier frames alone.

Clips are `b f h w c`. A clip may be computed in parts: a `Past` holds the last frames that each
layer has seen, and the parts together equal the whole.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.ops import attention, convolution

Clip = Float[Array, "b f h w c"]
_LEAST_NORM = 1e-12  # by which a pixel is divided at least
_KERNEL = 3  # frames, rows and columns of a convolution


class Past:
    """The last frames that the layers of a network have seen, in the order of the layers.

    A pass of a network over a part of a clip takes the frames that the pass before has kept, layer
    by layer, and keeps its own last ones. Without `frames` the part begins the clip.

    Attributes:
      begins: whether the part begins the clip. It is then one frame.
      kept: what the next part takes.
    """

    def __init__(self, frames: Sequence[Array] | None = None):
        self.begins = frames is None
        self.kept: list[Array] = []
        self._frames = iter(frames or ())

    def join(self, x: Clip, count: int) -> Float[Array, "b g h w c"]:
        """`x` behind the `count` frames before it; zeros stand for frames before the clip."""
        if self.begins:
            before = jnp.zeros((x.shape[0], count, *x.shape[2:]), x.dtype)
        else:
            before = next(self._frames)
        joined = jnp.concatenate([before, x], axis=1)
        self.keep(joined[:, -count:])
        return joined

    def keep(self, frames: Array) -> None:
        """The next part takes `frames` at this layer."""
        self.kept.append(frames)


class CausalConvolution(nn.Module):
    """A convolution over three frames, this one and the two before, and over 3 x 3 or 1 x 1 pixels.

    Attributes:
      size: rows and columns of the kernel.
    """

    features: int
    size: int = _KERNEL
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Clip, past: Past) -> Float[Array, "b f h w _"]:
        joined = past.join(x.astype(self.dtype), _KERNEL - 1)
        return frame_convolution(self.features, self.size, dtype=self.dtype, name="conv")(joined)


def frame_convolution(
    features: int, size: int, *, dtype: DTypeLike, stride: int = 1, name: str
) -> nn.Conv:
    """A convolution over three frames and `size` x `size` pixels of `b f h w c`. Frames are not
    padded.

    stride: over frames.
    """
    names = (None, None, None, layers.IN, layers.OUT)

    def convolve(x: Array, kernel: Array, *_: Any, **__: Any) -> Array:
        return convolution.frames_conv(x, kernel, stride)

    return layers.Conv(
        features,
        (_KERNEL, size, size),
        strides=(stride, 1, 1),
        padding=((0, 0), *[(size // 2,) * 2] * 2),
        dtype=dtype,
        kernel_init=layers.named(nn.initializers.lecun_normal(), *names, dtype=dtype),
        bias_init=layers.named(nn.initializers.zeros, layers.OUT, dtype=dtype),
        conv_general_dilated=convolve,
        name=name,
    )


class PixelNorm(layers.GivenParams, nn.Module):
    """Each pixel over the root mean square of its channels, times a scale a channel, in float32
    (Zhang & Sennrich 2019)."""

    @nn.compact
    def __call__(self, x: Float[Array, "*n c"]) -> Float[Array, "*n c"]:
        channels = x.shape[-1]
        init = layers.named(nn.initializers.ones, layers.CHANNELS)
        scale = self.param("scale", init, (channels,)).astype(jnp.float32)
        x = x.astype(jnp.float32)
        # The square root is taken of what is not zero, so that its gradient is finite.
        square = jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), _LEAST_NORM**2)
        return x / jnp.sqrt(square) * (channels**0.5 * scale)


class CausalResidual(nn.Module):
    """norm, swish, convolution, twice; plus the input, mapped linearly where widths differ."""

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Clip, past: Past) -> Float[Array, "b f h w _"]:
        h = nn.swish(PixelNorm(name="norm_in")(x))
        h = CausalConvolution(self.features, dtype=self.dtype, name="conv_in")(h, past)
        h = nn.swish(PixelNorm(name="norm_out")(h))
        h = CausalConvolution(self.features, dtype=self.dtype, name="conv_out")(h, past)
        if x.shape[-1] != self.features:
            x = layers.dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x.astype(self.dtype) + h


class FrameAttention(nn.Module):
    """Attention with one head among the pixels of each frame; plus the input."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Clip) -> Clip:
        batch, _, height, _, channels = x.shape
        h = PixelNorm(name="norm")(x).astype(self.dtype)
        h = rearrange(h, "b f h w c -> (b f) (h w) c")
        projected = layers.dense(3 * channels, dtype=self.dtype, name="query_key_value")(h)
        q, k, v = jnp.split(projected[:, :, None], 3, axis=-1)
        h = attention.attend_pixels(q, k, v)[:, :, 0]
        h = layers.dense(channels, dtype=self.dtype, name="out")(h)
        return x + rearrange(h, "(b f) (h w) c -> b f h w c", b=batch, h=height)


class CausalDownsample(nn.Module):
    """Halves height and width, and with `time` the number of frames after the first."""

    time: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Clip, past: Past) -> Float[Array, "b f2 h2 w2 c"]:
        channels = x.shape[-1]
        conv = layers.conv(channels, dtype=self.dtype, stride=2, pad=(0, 1), name="conv")
        x = conv(x)
        if not self.time:
            return x
        if past.begins:  # the first frame of a clip is not mixed with others
            past.keep(x)
            return x
        joined = past.join(x, 1)
        return frame_convolution(channels, 1, dtype=self.dtype, stride=2, name="time_conv")(joined)


class CausalUpsample(nn.Module):
    """Doubles height and width, halves the channels, and with `time` doubles the number of frames
    after the first."""

    time: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Clip, past: Past) -> Float[Array, "b f2 h2 w2 c2"]:
        channels = x.shape[-1]
        if self.time and past.begins:
            # The convolution over frames begins with the second frame, as if none were before it.
            past.keep(jnp.zeros((x.shape[0], _KERNEL - 1, *x.shape[2:]), self.dtype))
        elif self.time:
            conv = CausalConvolution(2 * channels, size=1, dtype=self.dtype, name="time_conv")
            x = rearrange(conv(x, past), "b f h w (k c) -> b (f k) h w c", k=2)
        x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
        return layers.conv(channels // 2, dtype=self.dtype, name="conv")(x)
