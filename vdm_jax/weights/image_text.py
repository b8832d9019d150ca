"""The weights of image-text pairs (`models/vision/image_text.py`), in and out of folders of
config.json and model.safetensors. The format is this library's own."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vdm_jax.models import layers
from vdm_jax.models.vision.image_text import ImageTextConfig, ImageTextPair
from vdm_jax.weights import published

CLASS = "ImageTextPair"


class Loaded(NamedTuple):
    """A pair and its parameters as NumPy arrays."""

    network: ImageTextPair
    params: dict[str, Any]


def is_pair(folder: Path) -> bool:
    """Whether a folder holds a pair."""
    path = folder / "config.json"
    return path.is_file() and published.read_json(path).get("_class_name") == CLASS


def read_config(folder: str | Path) -> ImageTextPair:
    """The pair that a folder's config.json describes, computing in float32.

    Raises FileNotFoundError; ValueError naming a value that is not understood.
    """
    path = Path(folder).expanduser() / "config.json"
    return from_config(published.read_json(path), path)


def from_config(found: Mapping[str, Any], path: Path) -> ImageTextPair:
    """The pair that a config.json, read from `path`, describes. Raises ValueError."""
    published.config_value(found, path, "_class_name", [CLASS])
    known = {field.name: field.default for field in dataclasses.fields(ImageTextConfig)}
    values = {name: value for name, value in found.items() if not name.startswith("_")}
    if unknown := sorted(set(values) - set(known)):
        raise ValueError(f"{path}: {', '.join(unknown)}: allowed are {', '.join(known)}")
    for name, value in values.items():
        numbers = value if isinstance(known[name], tuple) else [value]
        if not isinstance(numbers, list | tuple) or not all(
            type(number) is int and number > 0 for number in numbers
        ):
            raise ValueError(f"{path}: {name} = {value!r}: must be positive, such as {known[name]}")
    values = {n: tuple(v) if isinstance(known[n], tuple) else v for n, v in values.items()}
    try:
        return ImageTextPair(ImageTextConfig(**values))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def config(network: ImageTextPair) -> dict[str, Any]:
    """The config.json of a pair."""
    return {"_class_name": CLASS, **dataclasses.asdict(network.config)}


def abstract_params(network: ImageTextPair) -> PyTree:
    """For each parameter a `layers.Named` of its shape. Nothing is computed."""
    sizes = network.config
    images = jnp.zeros((1, sizes.image_size, sizes.image_size, 3))
    inputs = (images, jnp.zeros((1, 1, sizes.text_width)), jnp.ones((1, 1), bool))
    return layers.abstract_params(network, *inputs)


def name(path: str) -> str:
    """The name of a parameter in the file."""
    return path.replace("/kernel", "/weight").replace("/", ".")


def read_folder(folder: str | Path, dtype: DTypeLike = np.float32) -> Loaded:
    """A pair; its parameters are kept in `dtype`.

    Raises FileNotFoundError; ValueError naming the file, and the value, or the tensor, that is
    missing, left over or of another shape than config.json says.
    """
    network = read_config(folder)
    shapes = nn.meta.unbox(abstract_params(network))
    params = published.read_params(published.Tensors(folder), shapes, name, dtype)
    return Loaded(network, params)


def write_folder(
    folder: str | Path, network: ImageTextPair, params: PyTree, dtype: DTypeLike = np.float32
) -> None:
    """Writes a pair as `read_folder` reads it. Raises FileExistsError."""
    published.write_params(folder, params, name, config=config(network), dtype=dtype)
