"""What most conditions have in common."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
from jaxtyping import Array, Key

from vdm_jax.stage.protocols import Cond, Encode, Example, Shapes
from vdm_jax.stage.window import AT_THE_PLACE, Reaches


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """A condition that reads nothing from a batch, takes no input and has no null.

    Each kind overrides what it has. See `stage.protocols.Condition`.
    """

    name: ClassVar[str]
    mechanism: ClassVar[str]
    like_z: ClassVar[tuple[str, ...]] = ()
    settings: ClassVar[tuple[str, ...]] = ()

    @property
    def of_stage_before(self) -> bool:
        return False

    @property
    def reach(self) -> Reaches | None:
        return AT_THE_PLACE

    @property
    def dropout(self) -> float:
        return 0.0

    def batch_shapes(self, n: int, image_frames: int) -> Shapes:
        return {}

    def cond_shapes(self, n: int, image_frames: int) -> Shapes:
        return {}

    def example(self, example: Example, key: Key[Array, ""]) -> dict[str, Array]:
        return {}

    def input_shapes(self, n: int) -> Shapes:
        return {}

    def encode(self, given: Any, n: int) -> dict[str, Any]:
        if given is not None:
            raise ValueError(f"{self.name}: this model takes no such input")
        return {}

    def check(self, settings: Mapping[str, float]) -> None:
        """See `Condition`."""

    def begin(
        self,
        cond: Cond,
        n: int,
        key: Key[Array, ""],
        settings: Mapping[str, float],
        encode: Encode,
    ) -> dict[str, Array]:
        return {}

    def null(self, cond: Cond) -> Cond:
        return cond


def shape(n: int, *rest: int, dtype: Any) -> jax.ShapeDtypeStruct:
    """The shape (n, *rest)."""
    return jax.ShapeDtypeStruct((n, *rest), dtype)
