"""What z is. Training and sampling know no other way from clips to z and back."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from vdm_jax.stage.protocols import Frozen


@dataclasses.dataclass(frozen=True, kw_only=True)
class PixelSpace:
    """z is the video itself.

    Attributes:
      data_shape: (f, h, w, c) of a video, and of z.
    """

    data_shape: tuple[int, int, int, int]

    @property
    def z_shape(self) -> tuple[int, int, int, int]:
        return self.data_shape

    def encode(self, video: Float[Array, "b f h w c"], frozen: Frozen) -> Float[Array, "b f h w c"]:
        """See `Space`."""
        return video

    def decode(self, z: Float[Array, "b f h w c"], frozen: Frozen) -> Float[Array, "b f h w c"]:
        """See `Space`."""
        return z


def from_uint8(video: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """0..255 to [-1, 1], float32."""
    return video.astype(jnp.float32) / 127.5 - 1.0


def to_uint8(video: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """[-1, 1] to 0..255; values outside are clipped."""
    return jnp.round((jnp.clip(video, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)
