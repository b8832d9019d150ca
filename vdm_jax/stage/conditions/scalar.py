"""Conditions that are one number an example."""

import dataclasses
import math
from collections.abc import Mapping

import jax.numpy as jnp
from jaxtyping import Array, Key

from vdm_jax.stage.conditions.base import Base, shape
from vdm_jax.stage.protocols import Cond, Encode, Example, Shapes


@dataclasses.dataclass(frozen=True, kw_only=True)
class FrameRate(Base):
    """Frames a second: `cond["fps"]` float (b,).

    Attributes:
      fps: what is sampled unless the setting `fps` says otherwise.
      trained: the frame rates that the model was trained with; (): not known.
    """

    name = "fps"
    mechanism = "vector"
    settings = ("fps",)

    fps: float
    trained: tuple[float, ...] = ()

    def check(self, settings: Mapping[str, float]) -> None:
        fps = settings.get("fps", self.fps)
        if self.trained and not any(math.isclose(fps, rate, rel_tol=1e-3) for rate in self.trained):
            rates = ", ".join(f"{rate:g}" for rate in self.trained)
            raise ValueError(f"fps = {fps:g}: this model was trained with {rates} frames a second")

    def cond_shapes(self, n: int, image_frames: int) -> Shapes:
        return {"fps": shape(n, dtype=jnp.float32)}

    def example(self, example: Example, key: Key[Array, ""]) -> dict[str, Array]:
        return {"fps": example.fps}

    def begin(
        self,
        cond: Cond,
        n: int,
        key: Key[Array, ""],
        settings: Mapping[str, float],
        encode: Encode,
    ) -> dict[str, Array]:
        return {"fps": jnp.full(n, settings.get("fps", self.fps))}


@dataclasses.dataclass(frozen=True, kw_only=True)
class GuidanceScale(Base):
    """The scale of classifier-free guidance, which a distilled network takes as an input.

    `cond["guidance"]` float (b,). Guidance at sampling time and the distillation loss set it.

    Attributes:
      trained: the lowest and the highest scale in training; None: not known.
    """

    name = "guidance"
    mechanism = "vector"

    trained: tuple[float, float] | None = None

    def check_scale(self, scale: float) -> None:
        """Raises ValueError for a scale that the model was not trained with."""
        if self.trained is not None and not self.trained[0] <= scale <= self.trained[1]:
            low, high = self.trained
            allowed = f"guidance from {low:g} to {high:g}" if low < high else f"guidance {low:g}"
            raise ValueError(f"guidance = {scale:g}: this model was distilled for {allowed}")

    def cond_shapes(self, n: int, image_frames: int) -> Shapes:
        return {"guidance": shape(n, dtype=jnp.float32)}
