"""TransNet V2 (Souček & Lokoč 2020): whether a frame is in a transition between two shots.

Stacks of convolutions over space and, with four dilations, over time see the frames; beside them
stand similarities of each frame to those around it, of learned features and of colour histograms.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, UInt8

from vdm_jax.models import layers

HEIGHT, WIDTH = 27, 48  # pixels of a frame
_DILATIONS = (1, 2, 4, 8)  # frames
_LOOKUP = 101  # frames around one whose similarities to it are read
_SIMILARITY = 128  # features
_BINS = 8  # of a colour's histogram, for each channel


class TransNetV2(nn.Module):
    """Frames of 27 x 48 pixels to two logits a frame.

    Attributes:
      width: channels of one dilation in the first stack; they double from stack to stack.
      stacks: each of which halves height and width.
      hidden: features of the layer before the logits.
    """

    width: int = 16
    stacks: int = 3
    hidden: int = 1024
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, frames: UInt8[Array, "b t 27 48 3"]) -> Float[Array, "b t 2"]:
        """The logits that a frame is in the middle of a transition, and that it is in one."""
        clips, length = frames.shape[:2]
        x = rearrange(frames, "b t h w c -> (b t) h w c").astype(self.dtype) / 255
        means = []
        for i in range(self.stacks):
            x = _Stack(self.width * 2**i, length, self.dtype, name=f"stack_{i}")(x)
            means.append(x.mean((1, 2)))
        flat = rearrange(x, "(b t) h w c -> b t (h w c)", b=clips)
        features = rearrange(jnp.concatenate(means, -1), "(b t) c -> b t c", b=clips)
        projected = layers.dense(_SIMILARITY, dtype=self.dtype, name="similarity")(features)
        learned = _Neighbours(self.dtype, name="neighbours")(projected)
        colours = _Neighbours(self.dtype, name="colour_neighbours")(histograms(frames))
        x = jnp.concatenate([colours, learned, flat], -1)
        x = nn.relu(layers.dense(self.hidden, dtype=self.dtype, name="hidden")(x))
        return layers.dense(2, dtype=jnp.float32, name="out")(x)


class _Stack(nn.Module):
    """Two dilated convolutions with a residual connection, then half the height and width."""

    width: int
    length: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "bt h w _"]) -> Float[Array, "bt h2 w2 _"]:
        first = nn.relu(_Dilated(self.width, self.length, self.dtype, name="first")(x))
        second = nn.relu(_Dilated(self.width, self.length, self.dtype, name="second")(first))
        return nn.avg_pool(first + second, (2, 2), (2, 2))


class _Dilated(nn.Module):
    """Convolutions over space, then over time with each of the dilations, side by side; scaled and
    shifted as the batch normalisation of training left it."""

    width: int
    length: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "bt h w _"]) -> Float[Array, "bt h w 4*{self.width}"]:
        dilations, width = len(_DILATIONS), self.width
        kernel = self.param(
            "time",
            layers.named(
                nn.initializers.lecun_normal(in_axis=(1, 2), out_axis=3, batch_axis=0),
                *(None, None, layers.IN, layers.OUT),
                dtype=self.dtype,
            ),
            (dilations, 3, 2 * width, width),
        ).astype(self.dtype)
        channels = (dilations * width,)
        scale = self.param("scale", layers.named(nn.initializers.ones, layers.CHANNELS), channels)
        bias = self.param("bias", layers.named(nn.initializers.zeros, layers.CHANNELS), channels)
        x = layers.conv(2 * dilations * width, 3, dtype=self.dtype, use_bias=False, name="space")(x)
        height, columns = x.shape[1:3]
        x = rearrange(
            x, "(b t) h w (d c) -> d b t (h w) c", t=self.length, d=dilations, c=2 * width
        )
        parts = [
            _over_time(part, weights, dilation)
            for part, weights, dilation in zip(x, kernel, _DILATIONS, strict=True)
        ]
        x = rearrange(jnp.concatenate(parts, -1), "b t (h w) c -> (b t) h w c", h=height, w=columns)
        return x * scale.astype(self.dtype) + bias.astype(self.dtype)


def _over_time(
    x: Float[Array, "b t p c"], kernel: Float[Array, "3 c d"], dilation: int
) -> Float[Array, "b t p d"]:
    """A convolution of three frames that are `dilation` apart; zeros before and after."""
    length = x.shape[1]
    padded = jnp.pad(x, [(0, 0), (dilation, dilation), (0, 0), (0, 0)])
    return sum(
        padded[:, tap * dilation : tap * dilation + length] @ kernel[tap] for tap in range(3)
    )


class _Neighbours(nn.Module):
    """From one vector a frame to features of its cosine similarities to the frames around it."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b t _"]) -> Float[Array, "b t 128"]:
        norms = jnp.linalg.norm(x.astype(jnp.float32), axis=-1, keepdims=True)
        x = x / jnp.maximum(norms, 1e-12)
        similar = jnp.einsum("btc,buc->btu", x, x)
        side = _LOOKUP // 2
        padded = jnp.pad(similar, [(0, 0), (0, 0), (side, side)])
        length = x.shape[1]
        places = jnp.arange(length)[:, None] + jnp.arange(_LOOKUP)
        around = jnp.take_along_axis(padded, places[None], axis=2)
        return nn.relu(layers.dense(_SIMILARITY, dtype=self.dtype, name="dense")(around))


def histograms(frames: UInt8[Array, "b t h w 3"]) -> Float[Array, "b t 512"]:
    """How many pixels of each frame have each of 8 x 8 x 8 colours."""
    parts = frames.astype(jnp.int32) * _BINS // 256
    bins = (parts[..., 0] * _BINS + parts[..., 1]) * _BINS + parts[..., 2]

    def count(one: Int[Array, "n"]) -> Float[Array, "512"]:
        return jnp.zeros(_BINS**3).at[one].add(1.0)

    flat = rearrange(bins, "b t h w -> b t (h w)")
    return jax.vmap(jax.vmap(count))(flat)
