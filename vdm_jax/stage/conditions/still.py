"""The conditions of Stable Video Diffusion: the image that a clip begins with, and numbers that say
how a clip moves and plays."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, Key, UInt8

from vdm_jax.stage.conditions.base import Base, shape
from vdm_jax.stage.image_encoder import ImageEncoder
from vdm_jax.stage.protocols import Cond, Encode, Encoding, Example, Shapes
from vdm_jax.stage.space import from_uint8

LARGEST_BUCKET = 255


@dataclasses.dataclass(frozen=True, kw_only=True)
class Still(Base):
    """The image that a clip begins with (Blattmann et al. 2023, Stable Video Diffusion, section
    4.3).

    `Cond`: still_latents float (b, 1, h, w, c), the most likely latents of the image with noise
    added, not scaled, which are concatenated to every frame of z; augmentation (b,), the standard
    deviation of that noise in pixels from -1 to 1; with an encoder still_embedding (b, 1, d), the
    embedding of the image without noise. The null has zeros for latents and embedding, and keeps
    the augmentation.

    Attributes:
      shape: (h, w, c) of the image in pixels.
      latent_shape: (h, w, c) of its latents.
      scale, shift: z is (latents − shift) · scale.
      encoder: of the embedding; None = the network attends to something else.
      drop: chance of the null in training.
      log_mean, log_std: of the logarithm of the augmentation in training.
    """

    name = "still"
    mechanism = "channels"
    settings = ("augmentation",)

    shape: tuple[int, int, int]
    latent_shape: tuple[int, int, int]
    scale: float = 1.0
    shift: float = 0.0
    encoder: ImageEncoder | None = None
    drop: float = 0.1
    log_mean: float = -3.0
    log_std: float = 0.5

    @property
    def reach(self) -> None:
        """The image is a whole frame, whatever part of the clip is trained on."""

    @property
    def dropout(self) -> float:
        return self.drop

    def cond_shapes(self, n: int, image_frames: int) -> Shapes:
        if image_frames:
            raise ValueError(
                f"data.image_frames = {image_frames}: a model that takes an image for a clip is "
                "trained on clips alone; set data.image_frames = 0"
            )
        found = {
            "still_latents": shape(n, 1, *self.latent_shape, dtype=jnp.float32),
            "augmentation": shape(n, dtype=jnp.float32),
        }
        if self.encoder is not None:
            found["still_embedding"] = shape(n, 1, self.encoder.width, dtype=jnp.float32)
        return found

    def example(self, example: Example, key: Key[Array, ""]) -> dict[str, Array]:
        level_key, noise_key, drop_key = jax.random.split(key, 3)
        first = example.clip[:, :1]
        normal = jax.random.normal(level_key, (len(first),))
        augmentation = jnp.exp(self.log_mean + self.log_std * normal)
        found = self._entries(first, augmentation, noise_key, example.encode)
        keep = jax.random.bernoulli(drop_key, 1 - self.drop, (len(first),))
        dropped = self.null(found)
        return {
            name: jnp.where(jnp.expand_dims(keep, range(1, value.ndim)), value, dropped[name])
            for name, value in found.items()
        }

    def input_shapes(self, n: int) -> Shapes:
        # The image lies where its latents will, so that it does not stay in `Cond` beside them.
        return {"still_latents": shape(n, *self.shape, dtype=jnp.uint8)}

    def encode(self, given: UInt8[np.ndarray, "n h w c"] | None, n: int) -> dict[str, Any]:
        if given is None:
            raise ValueError(
                "still: this model makes clips of an image, and none was given; use vdm edit "
                "animate --input=IMAGE --model=MODEL"
            )
        if given.dtype != np.uint8 or given.shape != (n, *self.shape):
            raise ValueError(
                f"still: {given.dtype}{list(given.shape)} was given, this model takes uint8 "
                f"{[n, *self.shape]}"
            )
        return {"still_latents": given}

    def begin(
        self,
        cond: Cond,
        n: int,
        key: Key[Array, ""],
        settings: Mapping[str, float],
        encode: Encode,
    ) -> dict[str, Array]:
        """The setting `augmentation` is the noise's standard deviation; the default is 0."""
        augmentation = jnp.full(n, settings.get("augmentation", 0.0))
        image = from_uint8(cond["still_latents"])[:, None]
        return self._entries(image, augmentation, key, encode)

    def null(self, cond: Cond) -> Cond:
        names = [name for name in ("still_latents", "still_embedding") if name in cond]
        return {**cond, **{name: jnp.zeros_like(cond[name]) for name in names}}

    def _entries(
        self,
        image: Float[Array, "b 1 h w c"],
        augmentation: Float[Array, "b"],
        key: Key[Array, ""],
        encode: Encoding,
    ) -> dict[str, Array]:
        noise = jax.random.normal(key, image.shape)
        noisy = image + augmentation[:, None, None, None, None] * noise
        found = {
            "still_latents": encode(noisy) / self.scale + self.shift,
            "augmentation": augmentation,
        }
        if self.encoder is not None:
            embedding = self.encoder(rearrange(image, "b 1 h w c -> b h w c"), encode.frozen)
            found["still_embedding"] = embedding[:, None]
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Micro(Base):
    """Frames a second and the amount of motion, as numbers (SVD's micro-conditions; Blattmann et
    al. 2023, appendix D).

    `Cond`: fps_id (b,), frames a second less one; motion_bucket (b,), from 0 to 255; without an
    image also augmentation (b,), zeros. Guidance keeps them.

    Attributes:
      fps: of samples, unless the setting `fps` says otherwise.
      full_motion: the mean change from frame to frame, of pixels from -1 to 1, that is bucket 255
        in training (`measure_motion`) at `fps` frames a second. At another rate the change is
        scaled to that one, so the bucket is an amount of motion a second, and the frame rate
        decides how much of it lies between two frames.
      augmentation: whether the entry of that name is made here.
    """

    name = "micro"
    mechanism = "vector"
    settings = ("fps", "motion_bucket")

    fps: float = 7.0
    full_motion: float = 0.5
    augmentation: bool = False

    def check(self, settings: Mapping[str, float]) -> None:
        fps, bucket = settings.get("fps", self.fps), settings.get("motion_bucket", 0.0)
        if fps < 1:
            raise ValueError(f"fps = {fps:g}: must be at least 1")
        if not 0 <= bucket <= LARGEST_BUCKET:
            raise ValueError(f"motion_bucket = {bucket:g}: must be from 0 to {LARGEST_BUCKET}")

    def cond_shapes(self, n: int, image_frames: int) -> Shapes:
        names = ("fps_id", "motion_bucket", *["augmentation"] * self.augmentation)
        return {name: shape(n, dtype=jnp.float32) for name in names}

    def example(self, example: Example, key: Key[Array, ""]) -> dict[str, Array]:
        rate = example.fps / self.fps
        motion = rate * measure_motion(example.clip) / self.full_motion
        bucket = jnp.round(LARGEST_BUCKET * jnp.minimum(motion, 1.0))
        return self._entries(example.fps, bucket)

    def begin(
        self,
        cond: Cond,
        n: int,
        key: Key[Array, ""],
        settings: Mapping[str, float],
        encode: Encode,
    ) -> dict[str, Array]:
        fps = jnp.full(n, settings.get("fps", self.fps))
        return self._entries(fps, jnp.full(n, settings.get("motion_bucket", 0.0)))

    def _entries(self, fps: Float[Array, "b"], bucket: Float[Array, "b"]) -> dict[str, Array]:
        found = {"fps_id": fps - 1, "motion_bucket": bucket}
        return {**found, "augmentation": jnp.zeros_like(bucket)} if self.augmentation else found


def measure_motion(clip: Float[Array, "b f h w c"]) -> Float[Array, "b"]:
    """The mean absolute change of a pixel from one frame to the next; 0 for one frame.

    It stands for the optical flow by which the published models' clips were sorted.
    """
    if clip.shape[1] < 2:
        return jnp.zeros(len(clip))
    return jnp.abs(jnp.diff(clip, axis=1)).mean(axis=(1, 2, 3, 4))
