"""Scores from CLIP's embeddings of a clip's pictures: aesthetics, unsafe content, and similarity to
its caption.

No weights come with the package. The user names a folder of the published CLIP, and files of heads
on it: LAION's predictor of aesthetics (Schuhmann 2022, "improved aesthetic predictor",
sac+logos+ava1-l14-linearMSE, for ViT-L/14), and LAION's detector of unsafe pictures
("CLIP-based NSFW detector", h14_nsfw, for ViT-H/14).

The first, the middle and the last sample are embedded when the film is read. All scores are
computed from the stored embeddings, so another head or another caption needs no film.
"""

import base64
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from vdm_jax.data.curation.clips import View
from vdm_jax.data.curation.settings import Look
from vdm_jax.data.source import DataError

VERSION = 1
STAGE = "clip"
# The scores of heads, by their field of `Look`, and how a clip's pictures become one.
HEADS: Mapping[str, Callable[[np.ndarray], float]] = {"aesthetics": np.mean, "nsfw": np.max}
_STORED = np.dtype("<f2")
_LAYER = re.compile(r"(?:layers\.)?(\d+)\.(weight|bias)")
Embeddings = Float32[np.ndarray, "n d"]  # of unit length


class Layer(NamedTuple):
    """A layer of a head. rectified: whether negative outputs become 0."""

    weight: Float32[np.ndarray, "out in"]
    bias: Float32[np.ndarray, "out"]
    rectified: bool = False


Head = Sequence[Layer]


class Embedder:
    """The stage that embeds the first, the middle and the last sample of a clip.

    folder: of a published CLIP. It is read at the first clip, in the process that measures.
    """

    def __init__(self, folder: str):
        self._folder = folder

    def __call__(self, view: View) -> dict[str, Any]:
        embed = _load_images(self._folder)
        found = np.stack([embed(picture) for picture in view.picks]).astype(_STORED)
        return {"embeddings": [base64.b64encode(row.tobytes()).decode() for row in found]}


def stored(row: Mapping[str, Any]) -> Embeddings:
    """The embeddings in a row of `Embedder`."""
    rows = [np.frombuffer(base64.b64decode(one), _STORED) for one in row["embeddings"]]
    return unit(np.stack(rows).astype(np.float32))


def unit(x: Float32[np.ndarray, "... d"]) -> Float32[np.ndarray, "... d"]:
    """Vectors brought to unit length."""
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def similarity(pictures: Embeddings, text: Float32[np.ndarray, "d"]) -> float:
    """Mean cosine of a clip's pictures with a caption (CLIP score, without its factor)."""
    return float((pictures @ unit(text)).mean())


def head_scores(pictures: Embeddings, settings: Look) -> dict[str, float]:
    """The scores of the heads that settings name, from a clip's embeddings.

    - aesthetics: mean over the pictures; what people like has 5 or more, of 10.
    - nsfw: the greatest over the pictures, from about 0 to about 1.

    Raises DataError where a head cannot be read, or is for another CLIP.
    """
    found = {}
    for name, summary in HEADS.items():
        if file := getattr(settings, name):
            found[name] = float(summary(_outputs(name, pictures, read_head(name, file))))
    return found


def _outputs(name: str, pictures: Embeddings, head: Head) -> Float32[np.ndarray, "n 1"]:
    width, wanted = pictures.shape[1], head[0].weight.shape[1]
    if width != wanted:
        raise DataError(
            f"look.{name}: its head takes embeddings of {wanted} numbers, those of look.clip have "
            f"{width}; the head was trained on another CLIP"
        )
    x = pictures
    for layer in head:
        x = x @ layer.weight.T + layer.bias
        x = np.maximum(x, 0) if layer.rectified else x
    return x


def check(settings: Look) -> None:
    """Raises DataError where the files that settings name cannot be read."""
    if settings.clip:
        _read_clip(settings.clip)
    for name in HEADS:
        if file := getattr(settings, name):
            read_head(name, file)


@functools.cache
def _read_clip(folder: str) -> tuple[Any, Any]:
    """(network, parameters) of a whole CLIP. Raises DataError."""
    from vdm_jax.models.clip import CLIP
    from vdm_jax.weights import clip

    try:
        network, params = clip.read_folder(folder)
    except (OSError, ValueError) as error:
        raise DataError(f"look.clip = {folder!r}: {error}") from error
    if not isinstance(network, CLIP):
        raise DataError(f"look.clip = {folder!r}: is no whole CLIP, of images and texts")
    return network, params


@functools.cache
def _load_images(folder: str) -> Callable[[UInt8[np.ndarray, "h w 3"]], Float32[np.ndarray, "d"]]:
    import jax
    import jax.numpy as jnp

    from vdm_jax.models.vision.clip import CLIPVisionEncoder
    from vdm_jax.models.vision.preprocessing import Preprocessing

    network, params = _read_clip(folder)
    size = network.vision.image_size
    preprocess = Preprocessing(shorter=size, crop=(size, size))
    encoder = CLIPVisionEncoder(network.vision)
    encode = jax.jit(lambda images: encoder.apply({"params": params["vision"]}, images).pooled)

    def embed(picture: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "d"]:
        return unit(np.asarray(encode(jnp.asarray(preprocess(picture[None]))))[0])

    return embed


@functools.cache
def load_texts(folder: str) -> Callable[[str], Float32[np.ndarray, "d"]]:
    """The embedding of a text by the CLIP in a folder. Raises DataError."""
    import jax
    import jax.numpy as jnp

    from vdm_jax.models.text.clip import CLIPTextEncoder
    from vdm_jax.weights import clip_inputs

    network, params = _read_clip(folder)
    try:
        tokenizer = clip_inputs.read_text(folder).tokenizer
    except (OSError, ValueError) as error:
        raise DataError(f"look.clip = {folder!r}: {error}") from error
    encoder = CLIPTextEncoder(network.text)
    encode = jax.jit(
        lambda tokens: encoder.apply({"params": params["text"]}, tokens, method="encode").pooled
    )

    def embed(text: str) -> Float32[np.ndarray, "d"]:
        tokens, _ = tokenizer.encode([text], network.text.max_positions)
        return unit(np.asarray(encode(jnp.asarray(tokens)))[0])

    return embed


@functools.cache
def read_head(name: str, file: str) -> Head:
    """The layers of a published head: PyTorch's file, or the same tensors as safetensors.

    name: of the field of `Look`. Raises DataError for a missing file and for tensors that are no
    chain of layers to one number.
    """
    import safetensors
    import safetensors.numpy

    from vdm_jax.weights import torch_files

    try:
        if str(file).endswith(".safetensors"):
            tensors = safetensors.numpy.load_file(file)
        else:
            tensors = torch_files.read(file)
        return _layers(tensors, activations=name == "nsfw")
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise DataError(f"look.{name} = {file!r}: {error}") from error


def _layers(tensors: Mapping[str, np.ndarray], activations: bool) -> Head:
    """The layers in order. Numbers that are left out stand for drop-out and, with `activations`,
    for a rectifier before it."""
    found: dict[int, dict[str, np.ndarray]] = {}
    for name, tensor in tensors.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            raise ValueError(f"the tensor {name} is none of a head's layers")
        found.setdefault(int(match[1]), {})[match[2]] = tensor.astype(np.float32)
    layers: list[Layer] = []
    width = None
    for number in sorted(found):
        weight, bias = found[number].get("weight"), found[number].get("bias")
        fits = weight is not None and bias is not None and weight.shape[:1] == bias.shape
        if not fits or weight.ndim != 2 or width not in (None, weight.shape[1]):
            raise ValueError(f"layer {number} does not continue the one before")
        width = len(bias)
        layers.append(Layer(weight, bias, activations and number + 1 not in found))
    if width != 1:
        raise ValueError("its layers do not lead to one number")
    layers[-1] = layers[-1]._replace(rectified=False)
    return layers
