"""Frozen encoders of images, whose embeddings are conditions or what a prior samples."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm_jax.models.vision.image_text import unit
from vdm_jax.models.vision.squash import Squash
from vdm_jax.stage.protocols import Frozen

IMAGE_ENCODER = "image_encoder"  # the name of its parameters in `Frozen`


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageEncoder:
    """A frozen encoder of images; its parameters are `frozen["image_encoder"]`.

    Attributes:
      network: a linen module whose pooled output embeds an image, such as `CLIPVisionEncoder` or
        `ConvolutionalEncoder`.
      prepare: what it is given of an image.
    """

    network: Any
    prepare: Callable[[Array], Array] = Squash()

    @property
    def width(self) -> int:
        """Features of an embedding."""
        return self.network.config.projection

    def __call__(self, images: Float[Array, "n h w c"], frozen: Frozen) -> Float[Array, "n d"]:
        """The embeddings of images in [-1, 1], float32. Raises ValueError where the parameters are
        missing."""
        if IMAGE_ENCODER not in frozen:
            raise ValueError(
                f"frozen: lacks {IMAGE_ENCODER!r}, the parameters of the image encoder; it has: "
                f"{', '.join(sorted(frozen)) or 'none'}"
            )
        encoded = self.network.apply({"params": frozen[IMAGE_ENCODER]}, self.prepare(images))
        return encoded.pooled.astype(jnp.float32)


def normalised(embedding: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """Embeddings scaled so that their squares have the mean 1, as noise has; zeros stay zeros.

    Contrastive training sets their directions and leaves their lengths free.
    """
    return np.sqrt(embedding.shape[-1]) * unit(embedding)
