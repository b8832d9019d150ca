"""LAION's aesthetics score of a clip's pictures: linear layers on CLIP's image embedding.

Schuhmann 2022, "improved aesthetic predictor" (sac+logos+ava1-l14-linearMSE) on CLIP ViT-L/14. No
weights come with the package: the user names a folder of the published CLIP and a file of the head.
"""

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, UInt8

from vdm_jax.data.curation.clips import View
from vdm_jax.data.curation.settings import Look
from vdm_jax.data.source import DataError

VERSION = 1
_LAYER = re.compile(r"(?:layers\.)?(\d+)\.(weight|bias)")
Layers = Sequence[tuple[Float32[np.ndarray, "out in"], Float32[np.ndarray, "out"]]]


class Aesthetics:
    """Scores clips: `aesthetics`, the mean over the first, the middle and the last sample.

    Pictures that people like have 5 or more, of 10. The networks are loaded at the first clip, in
    the process that measures.
    """

    def __init__(self, settings: Look):
        self._settings = settings

    def __call__(self, view: View) -> dict[str, float]:
        score = _load(self._settings.clip, self._settings.aesthetics)
        return {"aesthetics": float(np.mean([score(picture) for picture in view.picks]))}


@functools.cache
def _load(folder: str, file: str) -> Callable[[UInt8[np.ndarray, "h w 3"]], float]:
    """The score of a picture. Raises DataError."""
    import jax

    from vdm_jax.models.vision.clip import CLIPVisionEncoder
    from vdm_jax.models.vision.preprocessing import Preprocessing
    from vdm_jax.weights import clip

    try:
        network, params = clip.read_folder(folder)
        head = read_head(file)
    except (OSError, ValueError) as error:
        raise DataError(f"look.clip, look.aesthetics: {error}") from error
    if hasattr(network, "vision"):  # a whole CLIP
        network, params = CLIPVisionEncoder(network.vision), params["vision"]
    if not isinstance(network, CLIPVisionEncoder) or not network.config.projection:
        raise DataError(f"look.clip = {folder!r}: holds no image encoder with a projection")
    width, given = head[0][0].shape[1], network.config.projection
    if width != given:
        raise DataError(
            f"look.aesthetics = {file!r}: takes {width} features, but look.clip gives {given}"
        )
    size = network.config.image_size
    preprocess = Preprocessing(shorter=size, crop=(size, size))
    embed = jax.jit(lambda images: network.apply({"params": params}, images).pooled)

    def score(picture: UInt8[np.ndarray, "h w 3"]) -> float:
        return predict(head, np.asarray(embed(preprocess(picture[None]))[0], np.float32))

    return score


def predict(head: Layers, embedding: Float32[np.ndarray, "d"]) -> float:
    """The score of an embedding, which is brought to unit length first."""
    x = embedding / max(float(np.linalg.norm(embedding)), 1e-12)
    for weight, bias in head:  # trained with drop-out between them and no activations
        x = weight @ x + bias
    return float(x[0])


def read_head(file: str | Path) -> Layers:
    """The layers of a published head: PyTorch's file, or the same tensors as safetensors.

    Raises FileNotFoundError; ValueError for tensors that are no chain of layers to one number.
    """
    import safetensors.numpy

    from vdm_jax.weights import torch_files

    if str(file).endswith(".safetensors"):
        tensors = safetensors.numpy.load_file(file)
    else:
        tensors = torch_files.read(file)
    return _layers(tensors, str(file))


def _layers(tensors: Mapping[str, np.ndarray], what: str) -> Layers:
    found: dict[int, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            raise ValueError(f"{what}: the tensor {name} is none of a head's layers")
        found.setdefault(int(match[1]), {})[match[2]] = tensor.astype(np.float32)
    layers, width = [], None
    for number in sorted(found):
        weight, bias = found[number].get("weight"), found[number].get("bias")
        fits = weight is not None and bias is not None and weight.shape[:1] == bias.shape
        if not fits or weight.ndim != 2 or width not in (None, weight.shape[1]):
            raise ValueError(f"{what}: layer {number} does not continue the one before")
        width = len(bias)
        layers.append((weight, bias))
    if width != 1:
        raise ValueError(f"{what}: its layers do not lead to one number")
    return layers
