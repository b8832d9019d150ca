"""A small image encoder and a linear head on a text encoder's states, trained so that the vectors
of a picture and its caption lie close, as in CLIP (Radford et al. 2021, section 2.3).

It takes CLIP's place where no published CLIP is at hand, and is trained on the data's own captions.
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vdm_jax.models import layers
from vdm_jax.models.vision.clip import Encoded

LARGEST_SCALE = 100.0  # of the similarities (Radford et al. 2021, section 2.5)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageTextConfig:
    """Sizes of a pair.

    Attributes:
      image_size: height and width of an image.
      widths: channels of each level. A level halves height and width.
      norm_groups: of the normalisations.
      text_width: features of a token's state.
      projection: features of both vectors.
    """

    image_size: int = 64
    widths: tuple[int, ...] = (24, 48, 96, 128)
    norm_groups: int = 8
    text_width: int = 384
    projection: int = 128

    def __post_init__(self):
        if self.image_size % 2 ** len(self.widths):
            raise ValueError(
                f"image_size = {self.image_size}: must be a multiple of {2 ** len(self.widths)}, "
                f"because each of the {len(self.widths)} levels of widths halves it"
            )


class ConvolutionalEncoder(layers.Whole):
    """Images in [-1, 1] to one vector each: levels of two convolutions, the first of stride 2, and
    a linear map of all positions, so that the vector holds where things are.

    Attributes:
      dtype: of the computation; normalisation is float32 always.
    """

    config: ImageTextConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Encoded:
        """Raises ValueError for images of another size than `image_size`."""
        config = self.config
        expected = (config.image_size, config.image_size, 3)
        if images.shape[1:] != expected:
            raise ValueError(f"images have shape {images.shape[1:]}: must be {expected}")
        h = images.astype(self.dtype)
        for level, width in enumerate(config.widths):
            h = layers.conv(width, dtype=self.dtype, stride=2, name=f"down_{level}")(h)
            inner = self._activated(h, f"norm_{level}")
            h = h + layers.conv(width, dtype=self.dtype, name=f"conv_{level}")(inner)
        states = self._activated(h, "norm_out").reshape(len(h), -1, config.widths[-1])
        project = layers.dense(config.projection, dtype=self.dtype, name="projection")
        return Encoded(states, project(states.reshape(len(h), -1)))

    @nn.nowrap
    def _activated(self, h: Float[Array, "b h w c"], name: str) -> Float[Array, "b h w c"]:
        norm = layers.group_norm(h.shape[-1], self.config.norm_groups, name)
        return nn.swish(norm(h)).astype(self.dtype)


class ImageTextPair(layers.Whole):
    """Both encoders, and the scale of their similarities.

    params["vision"] are those of `ConvolutionalEncoder` by itself.
    """

    config: ImageTextConfig = ImageTextConfig()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        images: Float[Array, "m h w 3"],
        states: Float[Array, "n l d"],
        mask: Bool[Array, "n l"],
    ) -> Float[Array, "m n"]:
        """The cosine of each image with each text, times the learned scale, in float32.

        Args:
          images: in [-1, 1].
          states, mask: of the tokens of texts, by a frozen text encoder.

        Raises ValueError where a size differs from `config`.
        """
        config = self.config
        if states.shape[-1] != config.text_width:
            raise ValueError(
                f"states {states.shape}: must have text_width = {config.text_width} features"
            )
        pictures = ConvolutionalEncoder(config, self.dtype, name="vision")(images).pooled
        head = layers.dense(config.projection, dtype=self.dtype, name="text")
        texts = head(mean_state(states, mask).astype(self.dtype))
        init = layers.named(nn.initializers.constant(np.log(1 / 0.07)))
        scale = jnp.exp(self.param("logit_scale", init, ()).astype(jnp.float32))
        return jnp.minimum(scale, LARGEST_SCALE) * unit(pictures) @ unit(texts).T


def mean_state(states: Float[Array, "*b l d"], mask: Bool[Array, "*b l"]) -> Float[Array, "*b d"]:
    """The mean of a text's states, float32."""
    weights = mask[..., None].astype(jnp.float32)
    total = (states.astype(jnp.float32) * weights).sum(-2)
    return total / jnp.maximum(weights.sum(-2), 1.0)


def unit(x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Vectors of length 1, float32; zeros stay zeros."""
    x = x.astype(jnp.float32)
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-8)
