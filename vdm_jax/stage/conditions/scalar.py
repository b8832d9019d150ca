"""Conditions that are one number an example."""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Key

from vdm_jax.stage.conditions.base import Base, shape
from vdm_jax.stage.protocols import Cond, Example, Shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameRate(Base):
    """Frames a second: `cond["fps"]` float (b,).

    Attributes:
      fps: what is sampled unless the setting `fps` says otherwise.
    """

    name = "fps"
    mechanism = "vector"
    settings = ("fps",)

    fps: float

    def cond_shapes(self, n: int, image_frames: int) -> Shapes:
        return {"fps": shape(n, dtype=jnp.float32)}

    def example(self, example: Example, key: Key[Array, ""]) -> dict[str, Array]:
        return {"fps": example.fps}

    def begin(
        self, cond: Cond, n: int, key: Key[Array, ""], settings: Mapping[str, float]
    ) -> dict[str, Array]:
        return {"fps": jnp.full(n, settings.get("fps", self.fps))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceScale(Base):
    """The scale of classifier-free guidance, which a distilled network takes as an input.

    `cond["guidance"]` float (b,). Guidance at sampling time and the distillation loss set it.
    """

    name = "guidance"
    mechanism = "vector"

    def cond_shapes(self, n: int, image_frames: int) -> Shapes:
        return {"guidance": shape(n, dtype=jnp.float32)}
