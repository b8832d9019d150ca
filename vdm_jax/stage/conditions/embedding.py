"""The embedding of an image as a condition (unCLIP, Ramesh et al. 2022, section 2.1)."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Key

from vdm_jax.stage.conditions.base import Base, shape
from vdm_jax.stage.image_encoder import ImageEncoder, normalised
from vdm_jax.stage.protocols import Cond, Encode, Encoding, Example, Shapes
from vdm_jax.stage.space import from_uint8

FRAMES = ("first", "middle", "random")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageEmbedding(Base):
    """The embedding of one frame of the clip, and of each image beside it, normalised
    (`image_encoder.normalised`). The null is zeros.

    `Cond`: image_embedding float (b, 1, d), and image_image_embedding (b, k, 1, d) of the images.
    Sampling takes float32 (n, 1, 1, 1, d), the samples of a prior, or uint8 images (n, h, w, c).

    Attributes:
      encoder: of the embeddings.
      drop: chance of the null in training.
      frame: of the clip, in training; one of `FRAMES`.
      video: the name of a condition whose first frame is embedded at sampling time where no
        embedding is given; "" = an embedding must be given, by the stage before in a cascade.
    """

    name = "image_embedding"
    mechanism = "tokens"

    encoder: ImageEncoder
    drop: float = 0.1
    frame: str = "first"
    video: str = ""

    def __post_init__(self):
        if self.frame not in FRAMES:
            raise ValueError(
                f"image_embedding: frame = {self.frame!r}: allowed are {', '.join(FRAMES)}"
            )

    @property
    def of_stage_before(self) -> bool:
        return not self.video

    @property
    def reach(self) -> None:
        """The image is a whole frame, whatever part of the clip is trained on."""

    @property
    def dropout(self) -> float:
        return self.drop

    def cond_shapes(self, n: int, image_frames: int) -> Shapes:
        width = self.encoder.width
        found = {"image_embedding": shape(n, 1, width, dtype=jnp.float32)}
        if image_frames:
            images = shape(n, image_frames, 1, width, dtype=jnp.float32)
            found["image_image_embedding"] = images
        return found

    def example(self, example: Example, key: Key[Array, ""]) -> dict[str, Array]:
        frame_key, drop_key = jax.random.split(key)
        count, frames = example.clip.shape[:2]
        places = {"first": 0, "middle": frames // 2}
        at = jnp.full(count, places.get(self.frame, 0))
        if self.frame == "random":
            at = jax.random.randint(frame_key, (count,), 0, frames)
        image = jnp.take_along_axis(example.clip, at[:, None, None, None, None], axis=1)
        found = {"image_embedding": self._embedded(image, example.encode)[:, 0]}
        if example.images is not None:
            found["image_image_embedding"] = self._embedded(example.images, example.encode)
        keep = jax.random.bernoulli(drop_key, 1 - self.drop, (count,))
        return {
            name: jnp.where(jnp.expand_dims(keep, range(1, value.ndim)), value, 0.0)
            for name, value in found.items()
        }

    def input_shapes(self, n: int) -> Shapes:
        if self.video:
            return {}
        return {"image_embedding": shape(n, 1, 1, 1, self.encoder.width, dtype=jnp.float32)}

    def encode(self, given: np.ndarray | None, n: int) -> dict[str, Any]:
        if given is None and self.video:
            return {}
        if given is None:
            raise ValueError(
                "image_embedding: this model makes clips of an image's embedding, and none was "
                "given; sample the cascade that it belongs to, whose prior makes it from the prompt"
            )
        width = self.encoder.width
        is_embedding = given.dtype == np.float32 and given.shape == (n, 1, 1, 1, width)
        is_image = given.dtype == np.uint8 and given.ndim == 4 and len(given) == n
        if not (is_embedding or (is_image and given.shape[-1] == 3)):
            raise ValueError(
                f"image_embedding: {given.dtype}{list(given.shape)} was given, this model takes "
                f"float32 {[n, 1, 1, 1, width]} or uint8 [{n}, h, w, 3]"
            )
        return {"image_embedding": given}

    def begin(
        self,
        cond: Cond,
        n: int,
        key: Key[Array, ""],
        settings: Mapping[str, float],
        encode: Encode,
    ) -> dict[str, Array]:
        given = cond.get("image_embedding")
        if given is None and self.video in cond:
            given = cond[self.video][:, 0]
        if given is None:
            return {"image_embedding": jnp.zeros((n, 1, self.encoder.width))}
        if given.dtype == jnp.uint8:
            embedded = self._embedded(from_uint8(given)[:, None], encode)[:, 0]
        else:
            embedded = normalised(rearrange(given, "n 1 1 1 d -> n 1 d"))
        return {"image_embedding": embedded}

    def null(self, cond: Cond) -> Cond:
        names = [name for name in ("image_embedding", "image_image_embedding") if name in cond]
        return {**cond, **{name: jnp.zeros_like(cond[name]) for name in names}}

    def _embedded(
        self, images: Float[Array, "b k h w c"], encode: Encoding
    ) -> Float[Array, "b k 1 d"]:
        flat = rearrange(images, "b k h w c -> (b k) h w c")
        embedded = normalised(self.encoder(flat, encode.frozen))
        return rearrange(embedded, "(b k) d -> b k 1 d", k=images.shape[1])
