"""CLIP's image encoder (Radford et al. 2021, section 2.4): a vision transformer whose class token
stands for the image. Stable Video Diffusion and Gen-1 take its projection as a condition. Its
weights are read by `weights/clip.py`."""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.blocks.encoder import Transformer
from vdm_jax.models.text import token_attention as transformer

_init = nn.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig:
    """Sizes of an encoder.

    Attributes:
      transformer: its layers.
      image_size: height and width of an image; patch_size: of a patch, in pixels.
      projection: features that the class token's state is projected to; 0 = it is not.
    """

    transformer: Transformer
    image_size: int = 224
    patch_size: int = 14
    projection: int = 0

    @property
    def patches(self) -> int:
        """Along one side of an image; pixels that fill no patch are left out."""
        return self.image_size // self.patch_size


# The published sizes: OpenAI's ViT-L/14 and OpenCLIP's ViT-H/14.
SIZES = {
    "l": CLIPVisionConfig(
        transformer=Transformer(width=1024, hidden=4096, num_layers=24, heads=16), projection=768
    ),
    "h": CLIPVisionConfig(
        transformer=Transformer(
            width=1280, hidden=5120, num_layers=32, heads=16, activation="gelu"
        ),
        projection=1024,
    ),
}


class Encoded(NamedTuple):
    """What an encoder makes of an image.

    Attributes:
      states: the last layer's, not normalised: of the class token, then of the patches row by row.
      pooled: the class token's, normalised, and projected if the encoder does so.
    """

    states: Float[Array, "b l width"]
    pooled: Float[Array, "b d"]


class CLIPVisionEncoder(layers.Whole):
    """Images, as `Preprocessing` makes them, to states and to one vector each.

    Attributes:
      dtype: of the computation; normalisation and softmax are float32 always.
    """

    config: CLIPVisionConfig
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, images: Float[Array, "b h w 3"]) -> Encoded:
        """Raises ValueError for images of another size than `image_size`."""
        config, sizes = self.config, self.config.transformer
        expected = (config.image_size, config.image_size, 3)
        if images.shape[1:] != expected:
            raise ValueError(f"images have shape {images.shape[1:]}: must be {expected}")
        patch = (config.patch_size, config.patch_size)
        embedded = layers.Conv(
            sizes.width,
            patch,
            strides=patch,
            padding="VALID",
            use_bias=False,
            dtype=self.dtype,
            kernel_init=layers.named(_init, None, None, layers.IN, layers.OUT, dtype=self.dtype),
            precision=transformer.precision(self.dtype),
            name="patches",
        )(images.astype(self.dtype))
        embedded = rearrange(embedded, "b h w d -> b (h w) d")
        token = self.param("class_token", layers.named(_init, layers.CHANNELS), (sizes.width,))
        first = jnp.broadcast_to(token.astype(self.dtype), (len(images), 1, sizes.width))
        x = jnp.concatenate([first, embedded], axis=1)
        count = config.patches**2 + 1
        positions = transformer.table(count, sizes.width, dtype=self.dtype, name="positions")
        x = sizes.norm(x + positions(jnp.arange(count)), "pre_norm", self.dtype)
        states, _ = sizes(x, dtype=self.dtype)
        pooled = sizes.norm(states[:, 0], "norm", self.dtype)
        if config.projection:
            axes = (layers.IN, layers.OUT)
            pooled = transformer.dense(
                config.projection, axes=axes, dtype=self.dtype, use_bias=False, name="projection"
            )(pooled)
        return Encoded(states, pooled)
