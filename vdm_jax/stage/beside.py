"""A stage that trains some parameters of a model, and new ones, beside all others of the model,
which are frozen."""

import dataclasses
import re
from typing import Any

from flax import traverse_util
from jaxtyping import Array, Key, PyTree

from vdm_jax.stage.low_rank import BASE
from vdm_jax.stage.protocols import Frozen
from vdm_jax.stage.stage import Stage


@dataclasses.dataclass(frozen=True, kw_only=True)
class Beside(Stage):
    """A stage whose parameters are some of its network's; the others are `frozen["base"]`.

    A checkpoint and a file then hold these parameters alone.

    Attributes:
      own: a regular expression. The parameters whose path matches it are the stage's. Those of the
        base at the same paths are not used.
    """

    own: str

    @classmethod
    def split(cls, stage: Stage, own: str) -> "Beside":
        """The stage with the parameters that `own` matches as its own."""
        fields = {field.name: getattr(stage, field.name) for field in dataclasses.fields(Stage)}
        return cls(**fields | {"new": "", "wider": ""}, own=own)

    def start(self, key: Key[Array, ""], base: PyTree) -> PyTree:
        """The parameters that training starts from: the base's where it has them, else drawn."""
        drawn = traverse_util.flatten_dict(self.init(key), sep="/")
        theirs = traverse_util.flatten_dict(base, sep="/")
        found = {path: theirs.get(path, leaf) for path, leaf in drawn.items()}
        return traverse_util.unflatten_dict(found, sep="/")

    def network_params(self, params: PyTree, frozen: Frozen) -> PyTree:
        """The base's parameters with the stage's in their places. Raises ValueError where the base
        is missing."""
        if BASE not in frozen:
            raise ValueError(
                f"frozen: lacks {BASE!r}, the parameters of the model that is tuned; it has: "
                f"{', '.join(sorted(frozen)) or 'none'}"
            )
        flat = traverse_util.flatten_dict(frozen[BASE], sep="/")
        flat |= traverse_util.flatten_dict(params, sep="/")
        return traverse_util.unflatten_dict(flat, sep="/")

    def _boxed_init(self, key: Key[Array, ""]) -> PyTree:
        flat: dict[str, Any] = traverse_util.flatten_dict(super()._boxed_init(key), sep="/")
        mine = {path: leaf for path, leaf in flat.items() if re.search(self.own, path)}
        if not mine:
            raise ValueError(f"own = {self.own!r}: matches no parameter of the network")
        return traverse_util.unflatten_dict(mine, sep="/")
