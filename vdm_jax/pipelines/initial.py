"""What a run starts from: another model's parameters, widened or with fresh ones beside them."""

import re
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from vdm_jax import systems
from vdm_jax.parallel import host_memory, sharding
from vdm_jax.pipelines import model
from vdm_jax.stage.beside import Beside
from vdm_jax.stage.control import ControlStage
from vdm_jax.stage.low_rank import BASE
from vdm_jax.stage.protocols import Frozen


def params(
    source: str | Path, stage, plan: sharding.Plan, *, new: str = "", seed: int = 0
) -> PyTree:
    """What a run of `stage` starts from: a model's parameters, and fresh ones where it has none.

    Kernels that `stage.wider` matches may have more inputs than the model's; the further ones start
    at zero.

    new: a regular expression. A parameter that the model lacks must match it, or `stage.new`; "" =
    the model may lack nothing. Raises as `read_params`.
    """
    abstract = model.abstract_params(stage, plan)
    new = "|".join(f"(?:{part})" for part in (new, stage.new) if part)
    if not new and not stage.wider:
        return model.read_params(source, abstract)
    theirs = nn.meta.unbox(systems.build(model.read_config(source)).abstract_params())
    shapes = {name: leaf.shape for name, leaf in model.named_leaves(theirs)}
    lacking = {name for name, _ in model.named_leaves(abstract) if name not in shapes}
    if bad := sorted(name for name in lacking if not (new and re.search(new, name))):
        raise ValueError(f"{source}: lacks {', '.join(bad[:5])}, which only a model can give")

    def as_theirs(path: tuple, leaf: Any) -> Any:
        shape = shapes.get(model.path_name(path), leaf.shape)
        if (
            not (stage.wider and re.search(stage.wider, model.path_name(path)))
            or shape == leaf.shape
        ):
            return leaf
        # A shape that the plan does not know lies whole on every device.
        return jax.ShapeDtypeStruct(shape, leaf.dtype, sharding=plan.everywhere)

    wanted = jax.tree_util.tree_map_with_path(as_theirs, abstract)
    if not lacking and wanted == abstract:
        return model.read_params(source, abstract)
    read = model.read_params(source, _without(wanted, lacking))
    fresh = _drawn(stage, abstract, lacking, seed) if lacking else {}

    def chosen(path: tuple, leaf: Any) -> jax.Array:
        name = model.path_name(path)
        if name in fresh:
            return fresh[name]
        found = _leaf(read, path)
        return found if found.shape == leaf.shape else _widened(found, leaf, name)

    return jax.tree_util.tree_map_with_path(chosen, abstract)


def _drawn(stage, abstract: PyTree, names: set[str], seed: int) -> dict[str, jax.Array]:
    """Of a stage's fresh parameters those of these names. The others are not drawn: that would take
    their memory, and most of the time to compile."""
    places = {name: leaf.sharding for name, leaf in model.named_leaves(abstract) if name in names}

    def draw(key: jax.Array) -> dict[str, jax.Array]:
        return {n: leaf for n, leaf in model.named_leaves(stage.init(key)) if n in names}

    return jax.jit(draw, out_shardings=places)(jax.random.key(seed))


def _widened(kernel: jax.Array, like: Any, name: str) -> jax.Array:
    """A kernel of the shape and place of another, which has more inputs; these are zero. Raises
    ValueError."""
    further = [after - before for before, after in zip(kernel.shape, like.shape, strict=True)]
    inputs = further.pop(-2)
    if any(further) or inputs < 0:
        raise ValueError(
            f"{name} has shape {kernel.shape}, and {like.shape} is asked for: only inputs, the "
            "last axis but one, may be added"
        )
    pad = [(0, 0)] * (kernel.ndim - 2) + [(0, inputs), (0, 0)]
    return jax.jit(lambda leaf: jnp.pad(leaf, pad), out_shardings=like.sharding)(kernel)


def adapted(stage: ControlStage | Beside, config, plan: sharding.Plan, frozen: Frozen) -> PyTree:
    """What the training of a stage with a frozen base starts from, where `plan` stores it."""
    start = jax.jit(stage.start, out_shardings=plan.params)
    base = host_memory.on_device(frozen, frozen)[BASE]
    return start(jax.random.key(config.train.seed), base)


def _leaf(tree: PyTree, path: tuple) -> Any:
    for key in path:
        tree = tree[key.key]
    return tree


def _without(tree: dict, names: set[str], above: str = "") -> dict:
    """A tree of dictionaries without the leaves of these names, and without what that empties."""
    kept = {}
    for key, value in tree.items():
        name = above + key
        if isinstance(value, dict):
            value = _without(value, names, f"{name}/")
            if value:
                kept[key] = value
        elif name not in names:
            kept[key] = value
    return kept
