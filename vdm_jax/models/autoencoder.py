"""The autoencoders whose latents diffusion models are trained on, as they are published.

All take and return images `n h w c` in [-1, 1]; frames are folded into the batch. Latents are those
of the network itself: what a diffusion model is trained on is (latents − shift) · scale.
"""

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Key, PyTree

from vdm_jax.models import layers
from vdm_jax.models.blocks import autoencoding as blocks
from vdm_jax.models.blocks.resample import Upsample

OverFrames = Callable[..., nn.Module]
"""`(name=...)` makes a layer that is called with features, frames folded into the batch, and the
number of frames of a clip."""


class Posterior(NamedTuple):
    """A normal distribution of latents for each image; `log_variance` None stands for no variance.

    Attributes:
      mean: float32 (n, h, w, c).
      log_variance: of its shape, from -30 to 20.
    """

    mean: Float[Array, "*n h w c"]
    log_variance: Float[Array, "*n h w c"] | None = None

    def mode(self) -> Float[Array, "*n h w c"]:
        """The most likely latents."""
        return self.mean

    def sample(self, key: Key[Array, ""]) -> Float[Array, "*n h w c"]:
        """Latents drawn with `key`."""
        if self.log_variance is None:
            return self.mean
        noise = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(0.5 * self.log_variance) * noise


class Autoencoder(layers.Whole):
    """What the autoencoders have in common.

    A subclass has the methods `encode(images) -> Posterior` and `decode(latents, frames)`, which
    returns images, the fields `latent_channels`, `scaling_factor` and `shift_factor`, and `factor`,
    how many rows, and columns, of pixels become one of latents.
    """

    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """The images encoded and decoded, each as a clip of one frame."""
        return self.decode(self.encode(images).mode())

    @nn.nowrap
    def abstract_params(self) -> PyTree:
        """For each parameter a `layers.Named` of its shape. Nothing is computed."""
        return layers.abstract_params(self, self.smallest)

    @property
    def smallest(self) -> Float[Array, "1 h w c"]:
        """What a network is initialised with: zeros that become one latent."""
        return jnp.zeros((1, self.factor, self.factor, self.in_channels))

    @property
    def encodes_clips(self) -> bool:
        """Whether whole clips, b f h w c, are encoded, or images, n h w c."""
        return False

    @property
    def frame_reach(self) -> int:
        """A decoded frame depends on the latents of frames up to this distance, but for statistics
        of normalisations over a clip; 0 = the network decodes each frame alone."""
        return 0


class AutoencoderKL(Autoencoder):
    """The autoencoder of Stable Diffusion (Rombach et al. 2022, appendix G).

    Attributes:
      channels: of each level, the finest first; every further level halves height and width.
      layers_per_level: residual blocks of a level of the encoder; the decoder has one more.
      norm_groups: groups of a normalisation, a divisor of all `channels`.
      attention: whether the coarsest level has attention.
      use_quant_conv, use_post_quant_conv: whether a matrix follows the encoder, and precedes the
        decoder.
      scaling_factor, shift_factor: a diffusion model is trained on (latents − shift) · scale.
      dtype: of the computation. Latents, images and normalisation are float32. The published
        weights overflow in float16.
    """

    in_channels: int = 3
    out_channels: int = 3
    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_level: int = 2
    latent_channels: int = 4
    norm_groups: int = 32
    attention: bool = True
    use_quant_conv: bool = True
    use_post_quant_conv: bool = True
    scaling_factor: float = 0.18215
    shift_factor: float = 0.0
    dtype: DTypeLike = jnp.float32

    def setup(self):
        common = {"groups": self.norm_groups, "attention": self.attention, "dtype": self.dtype}
        features = 2 * self.latent_channels
        self.encoder = Encoder(features, self.channels, self.layers_per_level, **common)
        common["over_frames"] = self.over_frames()
        self.decoder = Decoder(self.out_channels, self.channels, self.layers_per_level, **common)
        if self.use_quant_conv:
            self.quant_conv = layers.dense(features, dtype=jnp.float32)
        if self.use_post_quant_conv:
            self.post_quant_conv = layers.dense(self.latent_channels, dtype=jnp.float32)

    def encode(self, images: Float[Array, "n h w c"]) -> Posterior:
        """The distribution of the images' latents. Height and width are multiples of `factor`."""
        moments = self.encoder(images)
        return _posterior(self.quant_conv(moments) if self.use_quant_conv else moments)

    def decode(
        self, latents: Float[Array, "n h w c"], frames: int = 1
    ) -> Float[Array, "n h2 w2 c2"]:
        """Images. The network decodes each frame alone, whatever `frames` is."""
        latents = self.post_quant_conv(latents) if self.use_post_quant_conv else latents
        return self.decoder(latents, frames)

    @nn.nowrap
    def over_frames(self) -> OverFrames | None:
        """What makes the decoder's layers over frames; None = it has none."""
        return None

    @property
    def factor(self) -> int:
        return 2 ** (len(self.channels) - 1)


class AutoencoderKLFrameDecoder(AutoencoderKL):
    """`AutoencoderKL` whose decoder has a residual block over frames after each residual block
    (Video LDM, Blattmann et al. 2023, section 3.1.1). With the parameters of an `AutoencoderKL`
    beside these layers as they are initialised, it decodes each frame as that does.

    The attributes are those of `AutoencoderKL`. No published class is equal to it.
    """

    def decode(
        self, latents: Float[Array, "bf h w c"], frames: int = 1
    ) -> Float[Array, "bf h2 w2 c2"]:
        """The frames of clips of `frames` frames, batch and frames folded.

        Raises ValueError where `frames` does not divide their number.
        """
        _check_frames(latents, frames)
        return super().decode(latents, frames)

    @nn.nowrap
    def over_frames(self) -> OverFrames:
        return functools.partial(blocks.FrameBlending, self.norm_groups, self.dtype)

    @property
    def frame_reach(self) -> int:
        return 2 * (2 + len(self.channels) * (self.layers_per_level + 1))


class AutoencoderKLTemporalDecoder(Autoencoder):
    """The autoencoder of Stable Video Diffusion: an image encoder, and a decoder that mixes frames
    (Blattmann et al. 2023, appendix D).

    The attributes are those of `AutoencoderKL`. What has no annotation is the same in all published
    networks.
    """

    in_channels: int = 3
    out_channels: int = 3
    channels: tuple[int, ...] = (128, 256, 512, 512)
    latent_channels: int = 4
    scaling_factor: float = 0.18215
    dtype: DTypeLike = jnp.float32
    layers_per_level = 2
    norm_groups = 32
    shift_factor = 0.0

    def setup(self):
        common = {"groups": self.norm_groups, "dtype": self.dtype}
        features = 2 * self.latent_channels
        self.encoder = Encoder(features, self.channels, self.layers_per_level, **common)
        self.quant_conv = layers.dense(features, dtype=jnp.float32)
        self.decoder = TemporalDecoder(
            self.out_channels, self.channels, self.layers_per_level, **common
        )

    def encode(self, images: Float[Array, "n h w c"]) -> Posterior:
        """The distribution of the images' latents. Height and width are multiples of `factor`."""
        return _posterior(self.quant_conv(self.encoder(images)))

    def decode(
        self, latents: Float[Array, "bf h w c"], frames: int = 1
    ) -> Float[Array, "bf h2 w2 c2"]:
        """The frames of clips of `frames` frames, batch and frames folded.

        Raises ValueError where `frames` does not divide their number.
        """
        _check_frames(latents, frames)
        return self.decoder(latents, frames)

    @property
    def factor(self) -> int:
        return 2 ** (len(self.channels) - 1)

    @property
    def frame_reach(self) -> int:
        mixings = 2 + len(self.channels) * (self.layers_per_level + 1)
        return 2 * mixings + 1


class AutoencoderTiny(Autoencoder):
    """TAESD: a small autoencoder with the latents of a large one, for previews. It has no variance.

    Attributes:
      channels: of all layers.
      encoder_blocks, decoder_blocks: residual blocks of each level, in the order of computation;
        every further level halves, or in the decoder doubles, height and width.
      scaling_factor, shift_factor: as for `AutoencoderKL`. TAESD's latents are scaled already.
    """

    in_channels: int = 3
    out_channels: int = 3
    channels: int = 64
    latent_channels: int = 4
    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    scaling_factor: float = 1.0
    shift_factor: float = 0.0
    dtype: DTypeLike = jnp.float32

    def setup(self):
        self.encoder = TinyEncoder(
            self.latent_channels, self.channels, self.encoder_blocks, self.dtype
        )
        self.decoder = TinyDecoder(
            self.out_channels, self.channels, self.decoder_blocks, self.dtype
        )

    def encode(self, images: Float[Array, "n h w c"]) -> Posterior:
        """The images' latents. Height and width are multiples of `factor`."""
        return Posterior(self.encoder((images + 1) / 2))

    def decode(
        self, latents: Float[Array, "n h w c"], frames: int = 1
    ) -> Float[Array, "n h2 w2 c2"]:
        """Images. The network decodes each frame alone, whatever `frames` is."""
        return 2 * self.decoder(3 * jnp.tanh(latents / 3)) - 1

    @property
    def factor(self) -> int:
        return 2 ** (len(self.encoder_blocks) - 1)


def _check_frames(latents: Float[Array, "bf h w c"], frames: int) -> None:
    if len(latents) % frames:
        raise ValueError(f"frames = {frames}: does not divide {len(latents)}, all clips' frames")


def _posterior(moments: Float[Array, "n h w c"]) -> Posterior:
    mean, log_variance = jnp.split(moments.astype(jnp.float32), 2, axis=-1)
    return Posterior(mean, jnp.clip(log_variance, -30.0, 20.0))


class Encoder(nn.Module):
    """Images to `features` numbers a latent pixel. The attributes are those of `AutoencoderKL`."""

    features: int
    channels: Sequence[int]
    layers_per_level: int
    groups: int
    attention: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 _"]:
        channels, groups, dtype = self.channels, self.groups, self.dtype
        x = layers.conv(channels[0], dtype=dtype, name="conv_in")(images)
        for level, width in enumerate(channels):
            for number in range(self.layers_per_level):
                x = blocks.Residual(width, groups, dtype, name=f"down_{level}_residual_{number}")(x)
            if level < len(channels) - 1:
                x = blocks.Downsample(width, dtype, name=f"down_{level}_downsample")(x)
        x = blocks.Residual(channels[-1], groups, dtype, name="mid_residual_0")(x)
        if self.attention:
            x = blocks.Attention(groups, dtype, name="mid_attention")(x)
        x = blocks.Residual(channels[-1], groups, dtype, name="mid_residual_1")(x)
        return _output(x, self.features, groups)


class Decoder(nn.Module):
    """Latents to images of `features` channels. The attributes are those of `AutoencoderKL`, and

    over_frames: makes a layer over frames by its name, after each residual block; None = none.
    """

    features: int
    channels: Sequence[int]
    layers_per_level: int
    groups: int
    attention: bool = True
    dtype: DTypeLike = jnp.float32
    over_frames: OverFrames | None = None

    @nn.compact
    def __call__(
        self, latents: Float[Array, "bf h w c"], frames: int
    ) -> Float[Array, "bf h2 w2 _"]:
        channels, groups, dtype = self.channels[::-1], self.groups, self.dtype

        def residual(x: Float[Array, "bf h w c"], width: int, name: str) -> Array:
            x = blocks.Residual(width, groups, dtype, name=name)(x)
            if self.over_frames is None:
                return x
            return self.over_frames(name=f"{name}_temporal")(x, frames)

        x = layers.conv(channels[0], dtype=dtype, name="conv_in")(latents)
        x = residual(x, channels[0], "mid_residual_0")
        if self.attention:
            x = blocks.Attention(groups, dtype, name="mid_attention")(x)
        x = residual(x, channels[0], "mid_residual_1")
        for level, width in enumerate(channels):
            for number in range(self.layers_per_level + 1):
                x = residual(x, width, f"up_{level}_residual_{number}")
            if level < len(channels) - 1:
                x = Upsample(width, dtype, name=f"up_{level}_upsample")(x)
        return _output(x, self.features, groups)


class TemporalDecoder(nn.Module):
    """Latents of clips to frames of `features` channels. See `AutoencoderKLTemporalDecoder`."""

    features: int
    channels: Sequence[int]
    layers_per_level: int
    groups: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, latents: Float[Array, "bf h w c"], frames: int
    ) -> Float[Array, "bf h2 w2 _"]:
        channels, groups, dtype = self.channels[::-1], self.groups, self.dtype

        def mixing(width: int, name: str) -> blocks.FrameMixing:
            return blocks.FrameMixing(width, groups, dtype, name=name)

        x = layers.conv(channels[0], dtype=dtype, name="conv_in")(latents)
        x = mixing(channels[0], "mid_residual_0")(x, frames)
        x = blocks.Attention(groups, dtype, name="mid_attention")(x)
        x = mixing(channels[0], "mid_residual_1")(x, frames)
        for level, width in enumerate(channels):
            for number in range(self.layers_per_level + 1):
                x = mixing(width, f"up_{level}_residual_{number}")(x, frames)
            if level < len(channels) - 1:
                x = Upsample(width, dtype, name=f"up_{level}_upsample")(x)
        clip = _output(x, self.features, groups)
        clip = rearrange(clip, "(b f) h w c -> b f h w c", f=frames)
        clip = blocks.FrameConvolution(self.features, name="frame_conv_out")(clip)
        return rearrange(clip, "b f h w c -> (b f) h w c")


def _output(x: Float[Array, "n h w c"], features: int, groups: int) -> Float[Array, "n h w _"]:
    """norm, swish, convolution: the end of encoders and decoders, a part of the calling module."""
    x = nn.swish(layers.group_norm(x.shape[-1], groups, "norm_out", epsilon=blocks.EPSILON)(x))
    return layers.conv(features, dtype=jnp.float32, name="conv_out")(x)


class _TinyBlock(nn.Module):
    """Three convolutions with ReLUs; plus the input, and a ReLU."""

    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        h = x
        for number in range(3):
            h = layers.conv(x.shape[-1], dtype=self.dtype, name=f"conv_{number}")(h)
            h = nn.relu(h) if number < 2 else h
        return nn.relu(x + h)


class TinyEncoder(nn.Module):
    """Images in [0, 1] to latents of `features` channels. See `AutoencoderTiny`.

    Layers are numbered as in the published files.
    """

    features: int
    channels: int
    num_blocks: Sequence[int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 _"]:
        numbers = (f"layer_{number}" for number in itertools.count())
        conv = functools.partial(layers.conv, self.channels, dtype=self.dtype)
        x = images
        for level, count in enumerate(self.num_blocks):
            halves = {"stride": 2, "use_bias": False} if level else {}
            x = conv(**halves, name=next(numbers))(x)
            for _ in range(count):
                x = _TinyBlock(self.dtype, name=next(numbers))(x)
        return layers.conv(self.features, dtype=jnp.float32, name=next(numbers))(x)


class TinyDecoder(nn.Module):
    """Latents to images in [0, 1] of `features` channels. See `AutoencoderTiny`.

    Layers are numbered as in the published files, where the first ReLU and every doubling count.
    """

    features: int
    channels: int
    num_blocks: Sequence[int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, latents: Float[Array, "n h w c"]) -> Float[Array, "n h2 w2 _"]:
        numbers = (f"layer_{number}" for number in itertools.count())
        conv = functools.partial(layers.conv, self.channels, dtype=self.dtype)
        x = nn.relu(conv(name=next(numbers))(latents))
        for level, count in enumerate(self.num_blocks):
            next(numbers)
            if level:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
                x = conv(use_bias=False, name=next(numbers))(x)
            for _ in range(count):
                x = _TinyBlock(self.dtype, name=next(numbers))(x)
        return layers.conv(self.features, dtype=jnp.float32, name=next(numbers))(x)
