"""The causal video autoencoder of Wan 2.1 (Wan Team 2025, section 4.1): 4 x 8 x 8 pixels a latent.

The first frame becomes a latent frame of its own, and every further group of `frame_factor` frames
one more, so an image is a clip of one frame. A frame depends on itself and on earlier frames alone.
A clip is therefore computed in parts, in memory that does not depend on its length, and the parts
together equal the whole.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vdm_jax.models import layers
from vdm_jax.models.autoencoder import Posterior
from vdm_jax.models.blocks import causal
from vdm_jax.models.blocks.causal import Clip, Past

# Wan 2.1's statistics of the latents' channels.
_MEAN = (-0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508)
_MEAN += (0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921)
_STD = (2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743)
_STD += (3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160)
Frames = tuple[Array, ...]
"""What the layers of a network have kept of a part of a clip, see `blocks.causal.Past`."""


class CausalAutoencoder(layers.Whole):
    """Clips `b f h w c` in [-1, 1] to latents and back. The defaults are Wan 2.1's.

    Attributes:
      in_channels, out_channels: of pixels.
      channels: of each level, the finest first; every further level halves height and width.
      decoder_channels: of the decoder's levels, also the finest first; None = `channels`.
      halves_time: for each level but the last, whether the step to the next halves the frames too.
      layers_per_level: residual blocks of a level of the encoder; the decoder has one more.
      latent_channels: of a latent.
      latent_mean, latent_std: of the latents' channels. A diffusion model is trained on
        (latents - mean) / std.
      at_once: latent frames of a part. More take more memory and fewer passes.
      dtype: of the computation. Latents, clips and normalisation are float32.
    """

    in_channels: int = 3
    out_channels: int = 3
    channels: tuple[int, ...] = (96, 192, 384, 384)
    decoder_channels: tuple[int, ...] | None = None
    halves_time: tuple[bool, ...] = (False, True, True)
    layers_per_level: int = 2
    latent_channels: int = 16
    latent_mean: tuple[float, ...] = _MEAN
    latent_std: tuple[float, ...] = _STD
    at_once: int = 1
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.encoder = CausalEncoder(
            2 * self.latent_channels,
            self.channels,
            self.halves_time,
            self.layers_per_level,
            self.dtype,
        )
        self.decoder = CausalDecoder(
            self.out_channels,
            self.decoder_channels or self.channels,
            self.halves_time,
            self.layers_per_level,
            self.dtype,
        )
        self.quant_conv = layers.dense(2 * self.latent_channels, dtype=jnp.float32)
        self.post_quant_conv = layers.dense(self.latent_channels, dtype=jnp.float32)

    # --- whole clips ----------------------------------------------------------------------------

    def __call__(self, clip: Clip) -> Clip:
        """The clip encoded and decoded."""
        return self.decode(self.encode(clip).mode())

    def encode(self, clip: Clip) -> Posterior:
        """The distribution of the latents, (b, 1 + (f - 1) / frame_factor, h / factor, w / factor,
        latent_channels).

        Raises ValueError unless f - 1 is a multiple of `frame_factor`, and height and width of
        `factor`.
        """
        self.check(clip.shape)
        return self._posterior(self._in_parts(self.encoder, clip, self.frame_factor))

    def decode(self, latents: Clip) -> Float[Array, "b f2 h2 w2 c2"]:
        """The clip of latents of any number of frames, in [-1, 1]."""
        return jnp.clip(self._in_parts(self.decoder, self.post_quant_conv(latents), 1), -1.0, 1.0)

    def _in_parts(self, part: nn.Module, clip: Clip, size: int) -> Float[Array, "b f2 h2 w2 c2"]:
        """`part` of the first frame, then of the rest in groups of `size` frames, `at_once` groups
        at a time, or the next smaller number of them that divides all groups."""
        past = Past()
        first, groups = part(clip[:, :1], past), (clip.shape[1] - 1) // size
        if not groups:
            return first
        at_once = next(n for n in range(min(self.at_once, groups), 0, -1) if groups % n == 0)
        if at_once == groups:
            return jnp.concatenate([first, part(clip[:, 1:], Past(past.kept))], axis=1)

        def advance(part: nn.Module, kept: Frames, frames: Array) -> tuple[Frames, Array]:
            past = Past(kept)
            found = part(frames, past)
            return tuple(past.kept), found

        parts = rearrange(clip[:, 1:], "b (k s) ... -> k b s ...", s=at_once * size)
        scan = nn.scan(advance, variable_broadcast="params", split_rngs={"params": False})
        _, rest = scan(part, tuple(past.kept), parts)
        rest = rearrange(rest, "k b s ... -> b (k s) ...")
        return jnp.concatenate([first, rest], axis=1)

    def _posterior(self, moments: Clip) -> Posterior:
        moments = self.quant_conv(moments.astype(jnp.float32))
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.clip(log_variance, -30.0, 20.0))

    # --- parts of clips -------------------------------------------------------------------------

    def encode_part(self, frames: Clip, kept: Frames | None = None) -> tuple[Posterior, Frames]:
        """The latents of the next frames of a clip, and what the part after them takes.

        For clips that are too long to be held whole. kept: what the part before returned; None
        begins a clip, with its first frame alone. Later parts have multiples of `frame_factor`
        frames.
        """
        past = Past(kept)
        return self._posterior(self.encoder(frames, past)), tuple(past.kept)

    def decode_part(
        self, latents: Clip, kept: Frames | None = None
    ) -> tuple[Float[Array, "b f2 h2 w2 c2"], Frames]:
        """The next frames of a clip, and what the part after them takes; see `encode_part`."""
        past = Past(kept)
        frames = self.decoder(self.post_quant_conv(latents), past)
        return jnp.clip(frames, -1.0, 1.0), tuple(past.kept)

    # --- shapes ---------------------------------------------------------------------------------

    @property
    def encodes_clips(self) -> bool:
        """See `autoencoder.Autoencoder`."""
        return True

    @property
    def factor(self) -> int:
        """Rows, and columns, of pixels that become one of latents."""
        return 2 ** (len(self.channels) - 1)

    @property
    def frame_factor(self) -> int:
        """Frames that become one latent frame, after the first."""
        return 2 ** sum(self.halves_time)

    @property
    def shift_factor(self) -> Float[np.ndarray, "c"]:
        """`latent_mean`: z = (latents - shift_factor) * scaling_factor."""
        return np.asarray(self.latent_mean, np.float32)

    @property
    def scaling_factor(self) -> Float[np.ndarray, "c"]:
        """1 / `latent_std`."""
        return 1 / np.asarray(self.latent_std, np.float32)

    @nn.nowrap
    def latent_shape(self, shape: Sequence[int]) -> tuple[int, int, int, int]:
        """(f, h, w, c) of the latents of a clip of `shape` (f, h, w, c). Raises as `encode`."""
        self.check((1, *shape))
        frames, height, width, _ = shape
        latent_frames = 1 + (frames - 1) // self.frame_factor
        return latent_frames, height // self.factor, width // self.factor, self.latent_channels

    @nn.nowrap
    def check(self, shape: Sequence[int]) -> None:
        """Raises ValueError for clips of a shape (b, f, h, w, c) that cannot be encoded."""
        _, frames, height, width, channels = shape
        if (frames - 1) % self.frame_factor:
            raise ValueError(
                f"frames = {frames}: must be 1 more than a multiple of {self.frame_factor}, the "
                "frames that become one latent frame after the first"
            )
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"frames of {height} x {width} pixels: must be multiples of {self.factor}"
            )
        if channels != self.in_channels:
            raise ValueError(f"channels = {channels}: the autoencoder has {self.in_channels}")

    @nn.nowrap
    def abstract_params(self) -> PyTree:
        """For each parameter a `layers.Named` of its shape. Nothing is computed."""
        return layers.abstract_params(self, self.smallest)

    @property
    def smallest(self) -> Float[Array, "1 f h w c"]:
        """What the network is initialised with: zeros that become two latent frames, because the
        first alone does not reach the convolutions over frames."""
        return jnp.zeros((1, 1 + self.frame_factor, self.factor, self.factor, self.in_channels))


class CausalEncoder(nn.Module):
    """A part of a clip to `features` numbers a latent. The attributes are `CausalAutoencoder`'s."""

    features: int
    channels: Sequence[int]
    halves_time: Sequence[bool]
    layers_per_level: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, clip: Clip, past: Past) -> Float[Array, "b f2 h2 w2 _"]:
        dtype = self.dtype
        x = causal.CausalConvolution(self.channels[0], dtype=dtype, name="conv_in")(clip, past)
        for level, width in enumerate(self.channels):
            for number in range(self.layers_per_level):
                name = f"down_{level}_residual_{number}"
                x = causal.CausalResidual(width, dtype, name=name)(x, past)
            if level < len(self.channels) - 1:
                name = f"down_{level}_downsample"
                x = causal.CausalDownsample(self.halves_time[level], dtype, name=name)(x, past)
        return _output(_middle(x, past, dtype), past, self.features)


class CausalDecoder(nn.Module):
    """A part of the latents to frames of `features` channels. See `CausalAutoencoder`."""

    features: int
    channels: Sequence[int]
    halves_time: Sequence[bool]
    layers_per_level: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, latents: Clip, past: Past) -> Float[Array, "b f2 h2 w2 _"]:
        channels, doubles_time, dtype = self.channels[::-1], self.halves_time[::-1], self.dtype
        x = causal.CausalConvolution(channels[0], dtype=dtype, name="conv_in")(latents, past)
        x = _middle(x, past, dtype)
        for level, width in enumerate(channels):
            for number in range(self.layers_per_level + 1):
                name = f"up_{level}_residual_{number}"
                x = causal.CausalResidual(width, dtype, name=name)(x, past)
            if level < len(channels) - 1:
                name = f"up_{level}_upsample"
                x = causal.CausalUpsample(doubles_time[level], dtype, name=name)(x, past)
        return _output(x, past, self.features)


def _middle(x: Clip, past: Past, dtype: DTypeLike) -> Clip:
    """The blocks of the coarsest level, parts of the calling module."""
    residual = functools.partial(causal.CausalResidual, x.shape[-1], dtype)
    x = residual(name="mid_residual_0")(x, past)
    x = causal.FrameAttention(dtype, name="mid_attention")(x)
    return residual(name="mid_residual_1")(x, past)


def _output(x: Clip, past: Past, features: int) -> Float[Array, "b f h w _"]:
    """norm, swish, convolution: the end of encoder and decoder, a part of the calling module."""
    x = nn.swish(causal.PixelNorm(name="norm_out")(x))
    return causal.CausalConvolution(features, dtype=jnp.float32, name="conv_out")(x, past)
