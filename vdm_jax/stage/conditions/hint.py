"""The video that a ControlNet follows."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Key, UInt8

from vdm_jax.stage.conditions.base import Base, shape
from vdm_jax.stage.protocols import Cond, Encode, Example, Shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hint(Base):
    """Edges, depth or poses, in pixels, for a `models.controlnet.Control(hint="hint")`.

    `Cond`: hint float (b, f, h, w, c) in [0, 1]. It has no null: guidance keeps it in both of its
    evaluations.

    Attributes:
      shape: (f, h, w, c).
      source: the batch's entry that training reads it from, such as "edges", uint8 (b, f, h, w, 1)
        or (b, f, h, w, c); "" = it is only sampled with.
    """

    name = "hint"
    mechanism = "channels"

    shape: tuple[int, int, int, int]
    source: str = ""

    @property
    def reach(self) -> None:
        """It is read for whole clips."""

    def batch_shapes(self, n: int, image_frames: int) -> Shapes:
        if not self.source:
            return {}
        if image_frames:
            raise ValueError(f"data.image_frames = {image_frames}: images have no {self.source}")
        return {self.source: shape(n, *self.shape[:3], 1, dtype=jnp.uint8)}

    def cond_shapes(self, n: int, image_frames: int) -> Shapes:
        frames, *rest = self.shape
        return {"hint": shape(n, frames + image_frames, *rest, dtype=jnp.float32)}

    def example(self, example: Example, key: Key[Array, ""]) -> dict[str, Array]:
        if self.source not in example.batch:
            raise ValueError(
                f"batch lacks {self.source!r}, from which the hint is made; set data.extras"
            )
        read = jnp.asarray(example.batch[self.source])
        return {"hint": jnp.broadcast_to(read, (len(read), *self.shape)).astype(jnp.float32) / 255}

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
