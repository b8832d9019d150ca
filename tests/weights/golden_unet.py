"""The golden files of `record_unet`, as published folders."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

FOLDER = Path(__file__).parent / "golden"


class Golden(NamedTuple):
    """A published folder, and what diffusers computed with it."""

    folder: Path
    config: dict[str, Any]
    weights: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]


def write(folder: Path, config: dict[str, Any], weights: dict[str, np.ndarray]) -> Path:
    """A published folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    return folder


def load_golden(name: str, folder: Path) -> Golden:
    """The content of a golden file, its weights written to `folder` in float32."""
    with safetensors.safe_open(FOLDER / f"{name}.safetensors", "numpy") as file:
        config = json.loads(file.metadata()["config"])
        arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    weights = {
        key.removeprefix("weights/"): arrays.pop(key).astype(np.float32)
        for key in list(arrays)
        if key.startswith("weights/")
    }
    return Golden(write(folder, config, weights), config, weights, arrays)
