"""Conditions that are videos of z's shape: further channels of the network's input."""

import dataclasses
from typing import ClassVar, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.condition.base import Cond, require


@runtime_checkable
class VideoInput(Protocol):
    """A video that enters a network with z: called with the condition and z, it returns channels of
    z's frames, height and width. `keys` are the keys of the condition that it reads."""

    @property
    def keys(self) -> tuple[str, ...]: ...

    def __call__(self, cond: Cond, z: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c1"]: ...


@dataclasses.dataclass(frozen=True, kw_only=True)
class Concatenated:
    """A video that is concatenated to z, such as the coarser video of a super-resolution model.

    Attributes:
      key: of the condition; the video has z's shape.
    """

    key: str
    ADDED: ClassVar[bool] = False

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def __call__(self, cond: Cond, z: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        (video,) = require(cond, self.key)
        if video.shape != z.shape:
            raise ValueError(f"cond: {self.key} {video.shape} must have z's shape {z.shape}")
        return video


LOW_RES = Concatenated(key="low_res")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RepeatedImage:
    """An image that is concatenated to every frame of z, such as the one that a clip begins with.

    Attributes:
      key: of the condition; the image has z's height and width, and one frame.
    """

    key: str
    ADDED: ClassVar[bool] = False

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def __call__(self, cond: Cond, z: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c1"]:
        (image,) = require(cond, self.key)
        batch, frames, *size, _ = z.shape
        if image.shape[:-1] != (batch, 1, *size):
            raise ValueError(
                f"cond: {self.key} {image.shape} must be images of one frame, of z's batch, height "
                f"and width {z.shape}"
            )
        return jnp.broadcast_to(image, (batch, frames, *size, image.shape[-1]))


@dataclasses.dataclass(frozen=True, kw_only=True)
class NumberPlanes:
    """A number a clip as channels: the sinusoids of it, the same at every pixel of every frame.

    Attributes:
      key: of the condition, (b,).
      count: of the channels; even.
      max_period: of the sinusoids, whose frequencies go from 1 down to nearly 1 / max_period.
    """

    key: str
    count: int = 4
    max_period: float = 10.0
    ADDED: ClassVar[bool] = False

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def __call__(self, cond: Cond, z: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c1"]:
        number = jnp.asarray(*require(cond, self.key))
        waves = layers.sinusoidal_embedding(number, self.count, max_period=self.max_period)
        return jnp.broadcast_to(waves[:, None, None, None], (*z.shape[:-1], self.count))


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownFrames:
    """The known part of the video, with a mask of where it is known as one more channel.

    It enters by a convolution of its own that starts at zero and is added to z's, so that a network
    may take its weights from one without this condition. Without the keys, nothing is known.
    """

    ADDED: ClassVar[bool] = True
    name: ClassVar[str] = "masked_video"
    keys: ClassVar[tuple[str, ...]] = ("masked_video", "mask")

    def __call__(self, cond: Cond, z: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c1"]:
        if "mask" not in cond:
            return jnp.zeros((*z.shape[:-1], z.shape[-1] + 1), z.dtype)
        video, mask = cond["masked_video"], cond["mask"]
        if video.shape != z.shape or mask.shape != (*z.shape[:-1], 1):
            raise ValueError(
                f"cond: masked_video {video.shape} must have z's shape {z.shape}, and mask "
                f"{mask.shape} the same with one channel"
            )
        return jnp.concatenate([video * mask, mask], axis=-1).astype(z.dtype)


KNOWN_FRAMES = KnownFrames()
