"""Low-rank adaptation (LoRA; Hu et al. 2021, section 4.1): a frozen network and small matrices.

A kernel W of the base becomes W + α / r · A B, with A (inputs, r) and B (r, outputs). Only A and B
are parameters of the stage. B starts at zero, so the stage starts as its base. (With kernels that
are published transposed, the paper's A and B are the transposes of these.)
"""

import dataclasses
import math
import re
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Key, PyTree

from vdm_jax.models import layers
from vdm_jax.stage.protocols import Frozen
from vdm_jax.stage.stage import Stage, key_for

BASE = "base"
"""The name of the base's parameters among the frozen ones."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class LowRank(Stage):
    """A stage whose parameters are low-rank changes of those of `base`, which are `frozen["base"]`.

    Attributes:
      rank: r.
      alpha: α.
      targets: a regular expression. Kernels whose path, such as
        "down_0_block_0/conv_in/kernel", matches it are adapted; "" = all.
    """

    rank: int
    alpha: float
    targets: str = ""

    def __post_init__(self):
        super().__post_init__()
        if self.rank < 1:
            raise ValueError(f"train.lora.rank = {self.rank}: must be at least 1")
        if self.alpha <= 0:
            raise ValueError(f"train.lora.alpha = {self.alpha}: must be positive")
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(
                f"train.lora.targets = {self.targets!r}: is no regular expression ({error})"
            ) from error

    @classmethod
    def adapt(cls, stage: Stage, *, rank: int, alpha: float, targets: str = "") -> "LowRank":
        """The stage with low-rank changes as its parameters. Raises ValueError."""
        fields = {field.name: getattr(stage, field.name) for field in dataclasses.fields(Stage)}
        fields |= {"train_only": "", "new": "", "wider": ""}  # of the base's parameters
        return cls(**fields, rank=rank, alpha=alpha, targets=targets)

    @property
    def base(self) -> Stage:
        """The stage that is adapted."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(Stage)}
        return Stage(**fields)

    def pairs(self, params: PyTree) -> dict[str, tuple[Array, Array]]:
        """A and B by the path of the kernel that they change."""
        flat = traverse_util.flatten_dict(params, sep="/")
        paths = [path.removesuffix("/A") for path in flat if path.endswith("/A")]
        return {path: (flat[f"{path}/A"], flat[f"{path}/B"]) for path in paths}

    def network_params(self, params: PyTree, frozen: Frozen) -> PyTree:
        """The base's parameters with the changes added. Raises ValueError where the base is
        missing."""
        if BASE not in frozen:
            raise ValueError(
                f"frozen: lacks {BASE!r}, the parameters of the adapted model; it has: "
                f"{', '.join(sorted(frozen)) or 'none'}"
            )
        pairs, scale = self.pairs(nn.meta.unbox(params)), self.alpha / self.rank

        def add(path: tuple, leaf: Array) -> Array:
            # On a mesh a leaf lies in a box that gathers it when it is used: it is changed inside,
            # where it is stored in parts.
            keys = [part.key for part in path if isinstance(part, jax.tree_util.DictKey)]
            if (pair := pairs.get("/".join(keys))) is None:
                return leaf
            change = jnp.tensordot(*pair, axes=1, precision=jax.lax.Precision.HIGHEST)
            return leaf + scale * change.astype(leaf.dtype)

        return jax.tree_util.tree_map_with_path(add, frozen[BASE])

    def _boxed_init(self, key: Key[Array, ""]) -> PyTree:
        boxed = traverse_util.flatten_dict(self.base.abstract_params(), sep="/")
        found = {path: leaf for path, leaf in boxed.items() if path.endswith("/kernel")}
        drawn: dict[str, Any] = {}
        for path, leaf in found.items():
            if not re.search(self.targets, path):
                continue
            shape, inputs = leaf.value.shape, _num_inputs(leaf.names)
            # A keeps the variance of its inputs.
            normal = nn.initializers.normal(math.prod(shape[:inputs]) ** -0.5)
            down = layers.named(normal, *leaf.names[:inputs], None)
            up = layers.named(nn.initializers.zeros, None, *leaf.names[inputs:])
            own = key_for(key, path)
            drawn[f"{path}/A"] = down(own, (*shape[:inputs], self.rank))
            drawn[f"{path}/B"] = up(own, (self.rank, *shape[inputs:]))
        if not drawn:
            raise ValueError(
                f"train.lora.targets = {self.targets!r}: matches no kernel; there are "
                f"{', '.join(sorted(found)[:5])} and {max(len(found) - 5, 0)} more"
            )
        return traverse_util.unflatten_dict(drawn, sep="/")


def _num_inputs(names: Sequence[str | None]) -> int:
    """How many of a kernel's axes, the first ones, are of its inputs."""
    if layers.IN in names:
        return names.index(layers.IN) + 1
    return len(names) - 1
