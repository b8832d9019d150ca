"""z is the embedding of an image: what a prior samples (Ramesh et al. 2022, section 2.2)."""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Key

from vdm_jax.stage.image_encoder import ImageEncoder, normalised
from vdm_jax.stage.protocols import Frozen
from vdm_jax.stage.stage import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingSpace:
    """z is the normalised embedding of each frame (`image_encoder.normalised`).

    Attributes:
      data_shape: (f, h, w, c) of the images, with f = 1.
      encoder: of the embeddings.
    """

    data_shape: tuple[int, int, int, int]
    encoder: ImageEncoder
    pixels = False
    multiple = 1

    def __post_init__(self):
        if self.data_shape[0] != 1:
            raise ValueError(
                f"data.num_frames = {self.data_shape[0]}: a prior is trained on single frames, 1"
            )

    @property
    def z_shape(self) -> tuple[int, int, int, int]:
        return (self.data_shape[0], 1, 1, self.encoder.width)

    def z_shape_for(self, data_shape: Sequence[int]) -> tuple[int, int, int, int]:
        """See `Space`."""
        return (data_shape[0], 1, 1, self.encoder.width)

    def encode(
        self, video: Float[Array, "b f h w c"], frozen: Frozen, key: Key[Array, ""] | None = None
    ) -> Float[Array, "b f 1 1 d"]:
        """See `Space`. Raises ValueError where the encoder's parameters are missing."""
        frames = video.shape[1]
        embedded = self.encoder(rearrange(video, "b f h w c -> (b f) h w c"), frozen)
        return rearrange(normalised(embedded), "(b f) d -> b f 1 1 d", f=frames)

    def encode_mask(self, mask: Float[Array, "b f h w 1"]) -> Float[Array, "b f 1 1 1"]:
        """See `Space`."""
        return jnp.min(mask, axis=(2, 3), keepdims=True)

    def decode(self, z: Float[Array, "b f 1 1 d"], frozen: Frozen) -> Float[Array, "b f 1 1 d"]:
        """z: no image can be made of an embedding without a decoder."""
        return z

    def preview(self, z: Float[Array, "b f 1 1 d"], frozen: Frozen) -> Float[Array, "b f h w c"]:
        """Raises ValueError."""
        raise ValueError("preview: this model samples embeddings, which cannot be seen")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingStage(Stage):
    """A stage whose samples are embeddings, float32 (n, f, 1, 1, d)."""

    @property
    def sample_shape(self) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(self.z_shape, np.float32)

    def samples(self, decoded: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        return decoded
