"""The video that a ControlNet follows."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8

from vdm_jax.stage.conditions.base import Base, shape
from vdm_jax.stage.protocols import Cond, Encode, Shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hint(Base):
    """Edges, depth or poses, in pixels, for a `models.controlnet.Control(hint="hint")`.

    `Cond`: hint float (b, f, h, w, c) in [0, 1]. It has no null: guidance keeps it in both of its
    evaluations.

    Attributes:
      shape: (f, h, w, c).
    """

    name = "hint"
    mechanism = "channels"

    shape: tuple[int, int, int, int]

    def cond_shapes(self, n: int, image_frames: int) -> Shapes:
        frames, *rest = self.shape
        return {"hint": shape(n, frames + image_frames, *rest, dtype=jnp.float32)}

    def input_shapes(self, n: int) -> Shapes:
        return {"hint": shape(n, *self.shape, dtype=jnp.uint8)}

    def encode(self, given: UInt8[np.ndarray, "n f h w c"] | None, n: int) -> dict[str, Any]:
        if given is None:
            raise ValueError("hint: this stage follows a control video, and none was given")
        if given.dtype != np.uint8 or given.shape[1:] != self.shape:
            raise ValueError(
                f"hint: {given.dtype}{list(given.shape)} was given, this stage follows uint8 "
                f"[n, {', '.join(map(str, self.shape))}]"
            )
        return {"hint": given}

    def begin(
        self,
        cond: Cond,
        n: int,
        key: Key[Array, ""],
        settings: Mapping[str, float],
        encode: Encode,
    ) -> dict[str, Array]:
        return {"hint": cond["hint"].astype(jnp.float32) / 255}
