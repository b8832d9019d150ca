"""The shapes of a model's parameters, kept on disk beside the compiled programs.

They are found by tracing the network, which takes longer than all else that loading a small model
does. A file is named by the configuration and by what tracing depends on: the package's files and
the versions of JAX and Flax. Without a compilation cache nothing is kept.
"""

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from vdm_jax import config as config_lib
from vdm_jax.models.layers import Named

_FOLDER = "shapes"


def abstract_params(stage: Any, config: Any) -> PyTree:
    """`stage.abstract_params()` of the stage that `systems.build` makes of a configuration."""
    if (file := _file(config)) is None:
        return stage.abstract_params()
    try:
        return _from_json(json.loads(file.read_text()))
    except (OSError, ValueError, KeyError, TypeError):
        found = stage.abstract_params()
    if _is_nested(found):
        _write(file, json.dumps(_to_json(found)))
    return found


def _file(config: Any) -> Path | None:
    folder = _cache()
    if not folder or "://" in folder:  # a bucket
        return None
    what = [jax.__version__, flax.__version__, _sources(), config_lib.to_json(config)]
    name = hashlib.sha256(json.dumps(what).encode()).hexdigest()
    return Path(folder) / _FOLDER / f"{name}.json"


def _cache() -> str | None:
    return getattr(jax.config, "jax_compilation_cache_dir", None)


@functools.cache
def _sources() -> list[tuple[str, int, int]]:
    """Name, size and time of every file of the package: other code may make other parameters."""
    root = Path(__file__).parents[1]
    found = [(path, path.stat()) for path in root.rglob("*.py")]
    return sorted((str(path), stat.st_size, stat.st_mtime_ns) for path, stat in found)


def _is_nested(tree: PyTree) -> bool:
    """Whether a tree is made of dictionaries and `Named` alone."""
    if isinstance(tree, Mapping):
        return all(map(_is_nested, tree.values()))
    return isinstance(tree, Named)


def _to_json(tree: PyTree) -> dict[str, Any] | list[Any]:
    if isinstance(tree, Mapping):
        return {name: _to_json(part) for name, part in tree.items()}
    shape, computed = tree.value, jnp.dtype(tree.dtype)
    return [list(shape.shape), shape.dtype.name, list(tree.names), computed.name]


def _from_json(kept: Any) -> PyTree:
    if isinstance(kept, dict):
        return {name: _from_json(part) for name, part in kept.items()}
    shape, dtype, names, computed = kept
    value = jax.ShapeDtypeStruct(tuple(shape), jnp.dtype(dtype))
    return Named(value=value, names=tuple(names), dtype=jnp.dtype(computed))


def _write(file: Path, text: str) -> None:
    """Writes a file, whole or not at all: several processes may do so at once."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, delete=False) as partial:
            partial.write(text)
        os.replace(partial.name, file)
    except OSError:
        pass  # a full or read-only disk costs time, as without a cache
