"""What an edit starts from: the video that an instruction changes, and masks of its objects."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8

from vdm_jax.stage.conditions.base import Base, shape
from vdm_jax.stage.protocols import Cond, Encode, Shapes
from vdm_jax.stage.space import from_uint8


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceVideo(Base):
    """The video that an instruction edits, concatenated to z (InstructPix2Pix, Brooks et al. 2023,
    section 3.2).

    `Cond`: source float (b, f, h, w, c), of z's shape: the mode of the autoencoder's latents, not
    scaled. The null condition is zeros.

    Attributes:
      shape: (f, h, w, c) of the video, in pixels.
      z_shape: (f, h, w, c) of z.
      scale: by which latents are multiplied in z.
    """

    name = "source"
    mechanism = "channels"
    like_z = ("source",)

    shape: tuple[int, int, int, int]
    z_shape: tuple[int, int, int, int]
    scale: float

    def cond_shapes(self, n: int, image_frames: int) -> Shapes:
        frames, *rest = self.z_shape
        return {"source": shape(n, frames + image_frames, *rest, dtype=jnp.float32)}

    def input_shapes(self, n: int) -> Shapes:
        return {"source": shape(n, *self.shape, dtype=jnp.uint8)}

    def encode(self, given: UInt8[np.ndarray, "n f h w c"] | None, n: int) -> dict[str, Any]:
        if given is None:
            raise ValueError("source: this model edits a video, and none was given")
        return {"source": _checked("source", given, self.shape, "edits")}

    def begin(
        self,
        cond: Cond,
        n: int,
        key: Key[Array, ""],
        settings: Mapping[str, float],
        encode: Encode,
    ) -> dict[str, Array]:
        return {"source": encode(from_uint8(cond["source"])) / self.scale}

    def null(self, cond: Cond) -> Cond:
        return {**cond, "source": jnp.zeros_like(cond["source"])}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Foreground(Base):
    """Where a video shows its objects, for samplers that treat the background apart. The network
    does not read it.

    `Cond`: foreground bool (b, f, h, w, 1), in pixels.

    Attributes:
      shape: (f, h, w, 1).
    """

    name = "foreground"
    mechanism = "none"

    shape: tuple[int, int, int, int]

    def input_shapes(self, n: int) -> Shapes:
        return {"foreground": shape(n, *self.shape, dtype=jnp.uint8)}

    def encode(self, given: UInt8[np.ndarray, "n f h w 1"] | None, n: int) -> dict[str, Any]:
        if given is None:
            raise ValueError("foreground: masks are needed, and none were given")
        return {"foreground": _checked("foreground", given, self.shape, "takes masks of")}

    def begin(
        self,
        cond: Cond,
        n: int,
        key: Key[Array, ""],
        settings: Mapping[str, float],
        encode: Encode,
    ) -> dict[str, Array]:
        return {"foreground": cond["foreground"] != 0}


def _checked(name: str, given: np.ndarray, wanted: tuple[int, ...], what: str) -> np.ndarray:
    if given.dtype != np.uint8 or given.shape[1:] != wanted:
        raise ValueError(
            f"{name}: {given.dtype}{list(given.shape)} was given, this stage {what} uint8 "
            f"[n, {', '.join(map(str, wanted))}]"
        )
    return given
