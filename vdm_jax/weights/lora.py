"""Low-rank adapters (LoRA; Hu et al. 2021) as they are published: W becomes W + s · α / r · B A.

A file is a safetensors file of pairs (A, B), one for each adapted layer. These layouts are read:

| layout | of the U-Net | of the text encoder |
|---|---|---|
| diffusers | `unet.LAYER.lora_A.weight`, `.lora_B.weight` | `text_encoder.LAYER.…` |
| diffusers, older | `[unet.]LAYER.lora.down.weight`, `.lora.up.weight` | `text_encoder.LAYER.…` |
| kohya | `lora_unet_LAYER.lora_down.weight`, `.lora_up.weight`, `.alpha` | `lora_te_LAYER.…` |

LAYER is the published name of a layer, with "." or, in kohya's files, "_" between its parts. The
oldest files have `ATTENTION.processor.to_q_lora.down.weight`, or `.lora_linear_layer.down.weight`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
from flax import traverse_util
from jax.typing import ArrayLike, DTypeLike
from jaxtyping import PyTree

from vdm_jax.weights import published, tensor_file

FILE = "pytorch_lora_weights.safetensors"  # as diffusers calls it
UNET, TEXT = "unet", "text_encoder"
_PREFIXES = {"unet.": UNET, "lora_unet_": UNET, "text_encoder.": TEXT, "lora_te_": TEXT}
_FACTOR = re.compile(
    r"(?P<layer>.+?)"
    r"(?:\.lora_(?P<new>A|B|down|up)|(?:[._]lora|\.lora_linear_layer)\.(?P<old>down|up))\.weight"
)
_ALPHA = ".alpha"
_IS_DOWN = {"A": True, "down": True, "B": False, "up": False}
# Older files name layers by what replaced them.
_OLD_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_METADATA = "lora_adapter_metadata"
# Of the metadata: settings that change what is computed, in ways that are not implemented.
_REFUSED = ("use_dora", "use_rslora", "lora_bias")


class Pair(NamedTuple):
    """The factors of one layer, as published, and the name that the file has for the layer.

    Attributes:
      down: A, (rank, inputs, *kernel).
      up: B, (outputs, rank, *ones).
      alpha: α.
    """

    layer: str
    down: np.ndarray
    up: np.ndarray
    alpha: float


class Lora(NamedTuple):
    """A file's pairs, by the part of the pipeline (`UNET`, `TEXT`) and the layer's name with "_"
    between its parts."""

    file: Path
    parts: Mapping[str, Mapping[str, Pair]]


def read(file: str | Path) -> Lora:
    """The pairs of a file. Raises FileNotFoundError; ValueError naming a tensor that is not
    understood, that lacks its partner, or whose rank is another than its partner's."""
    file = Path(file).expanduser()
    tensors = published.open_file(file)
    with safetensors.safe_open(file, framework="numpy") as opened:
        metadata = opened.metadata() or {}
    found: dict[tuple[str, str], dict[str, Any]] = {}
    odd = []
    for tensor in sorted(tensors.names()):
        if tensor.endswith(_ALPHA):
            layer, kind = tensor.removesuffix(_ALPHA), "alpha"
        elif match := _FACTOR.fullmatch(tensor):
            layer, kind = match["layer"], "down" if _IS_DOWN[match["new"] or match["old"]] else "up"
        else:
            odd.append(tensor)
            continue
        part, flat = _place(layer)
        if kind in found.setdefault((part, flat), {"layer": layer}):
            raise ValueError(f"{file}: {layer} has two {kind}: one is allowed")
        found[part, flat][kind] = tensors.whole(tensor)
    if odd:
        raise ValueError(
            f"{file}: {published.listed(odd)}: not understood; allowed are pairs of LoRA factors "
            "(lora_A and lora_B, or down and up) and alpha"
        )
    if not found:
        raise ValueError(f"{file}: holds no tensors")
    parts: dict[str, dict[str, Pair]] = {UNET: {}, TEXT: {}}
    alphas = _Alphas(file, metadata)
    for (part, flat), factors in found.items():
        parts[part][flat] = _pair(file, part, factors, alphas)
    return Lora(file, parts)


def _place(layer: str) -> tuple[str, str]:
    """The part of the pipeline, and the layer's name with "_" between its parts."""
    prefix = next((prefix for prefix in _PREFIXES if layer.startswith(prefix)), "")
    part = _PREFIXES.get(prefix, UNET)
    layer = layer.removeprefix(prefix).replace(".processor.", ".")
    head, dot, last = layer.rpartition(".")
    if part == TEXT:
        flat = f"{head}{dot}{_OLD_TEXT.get(last, last)}".replace(".", "_")
        # Version 5 of transformers leaves the prefix out.
        return part, flat if flat.startswith("text_model_") else f"text_model_{flat}"
    return part, (f"{layer}.0" if last == "to_out" else layer).replace(".", "_")


def _pair(file: Path, part: str, factors: Mapping[str, Any], alphas: "_Alphas") -> Pair:
    layer = factors["layer"]
    if lacking := [kind for kind in ("down", "up") if kind not in factors]:
        raise ValueError(f"{file}: {layer} lacks {' and '.join(lacking)} of its pair")
    down, up = factors["down"], factors["up"]
    fits = down.ndim > 1 and up.ndim > 1 and down.shape[0] == up.shape[1]
    if not fits or any(size != 1 for size in up.shape[2:]):
        raise ValueError(
            f"{file}: {layer}: down has shape {down.shape} and up {up.shape}: must be (rank, "
            "inputs, *kernel) and (outputs, rank, *ones) of one rank"
        )
    alpha = factors.get("alpha")
    if alpha is not None and alpha.size != 1:
        raise ValueError(f"{file}: {layer}{_ALPHA} has shape {alpha.shape}: must be one number")
    rank = down.shape[0]
    return Pair(layer, down, up, alphas(part, layer, rank) if alpha is None else alpha.item())


class _Alphas:
    """α of layers for which the file has no tensor: what its metadata say, or the rank."""

    def __init__(self, file: Path, metadata: Mapping[str, str]):
        try:
            self._settings = dict(json.loads(metadata.get(_METADATA, "{}")))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}: its {_METADATA} cannot be read ({error})") from error
        for name, value in self._settings.items():
            if value and name.split(".")[-1] in _REFUSED:
                raise ValueError(f"{file}: {name} = {value!r}: not implemented")

    def __call__(self, part: str, layer: str, rank: int) -> float:
        layer = layer.removeprefix(f"{part}.")
        for pattern, alpha in (self._settings.get(f"{part}.alpha_pattern") or {}).items():
            if re.fullmatch(rf"(?:.*\.)?(?:{pattern})", layer):
                return float(alpha)
        return float(self._settings.get(f"{part}.lora_alpha") or rank)


class _Layer(NamedTuple):
    """A kernel, or a row of a stacked one. shape: of the kernel; published: as published."""

    path: str
    row: int | None
    shape: tuple[int, ...]
    published: tuple[int, ...]


def changes(
    loras: Sequence[tuple[Lora, float]], part: str, shapes: PyTree, name: published.Name
) -> dict[str, np.ndarray]:
    """What is added to the kernels of a network, float32 by path: the sum of s · α / r · B A.

    Args:
      loras: files, each with its scale s.
      part: `UNET` or `TEXT`.
      shapes: of the network's parameters.
      name: the published name of each.

    Raises ValueError naming a layer that the network does not have, or the shape of a pair that
    does not fit its layer.
    """
    flat = traverse_util.flatten_dict(shapes, sep="/")
    layers = dict(_layers(flat, name))
    total: dict[str, np.ndarray] = {}
    for lora, scale in loras:
        pairs = lora.parts[part]
        if unknown := [pair.layer for flat_name, pair in pairs.items() if flat_name not in layers]:
            raise ValueError(
                f"{lora.file}: {published.listed(unknown)}: the model's {part} has no such layer"
            )
        for flat_name, pair in pairs.items():
            layer = layers[flat_name]
            product = published.to_ours(_product(lora.file, pair, layer), layer.shape, layer.path)
            whole = total.setdefault(layer.path, np.zeros(flat[layer.path].shape, np.float32))
            whole[... if layer.row is None else layer.row] += np.float32(scale) * product
    return total


def added(params: PyTree, more: Mapping[str, np.ndarray]) -> PyTree:
    """NumPy parameters with `changes` added, each in its own type."""
    flat = traverse_util.flatten_dict(params, sep="/")
    summed = {path: (flat[path] + change).astype(flat[path].dtype) for path, change in more.items()}
    return traverse_util.unflatten_dict({**flat, **summed}, sep="/")


def _layers(flat: Mapping[str, Any], name: published.Name) -> Iterator[tuple[str, _Layer]]:
    """Pairs of a layer's name with "_" between its parts, and the layer."""
    for path, leaf in flat.items():
        if not path.endswith("/kernel"):
            continue
        stacked = not isinstance(name(path), str | published.Place)
        shape = leaf.shape[1:] if stacked else leaf.shape
        for row, place in enumerate(published.all_places(name(path))):
            own = (*published.published_shape(shape, path), *[1] * place.ones)
            layer = _Layer(path, row if stacked else None, shape, own)
            yield place.name.removesuffix(".weight").replace(".", "_"), layer


def _product(file: Path, pair: Pair, layer: _Layer) -> np.ndarray:
    """α / r · B A in the published layout of the layer. Raises ValueError."""
    outputs, inputs, *kernel = layer.published
    # A 1 x 1 convolution is also published as a linear layer.
    size = [n for n in pair.down.shape[2:] if n > 1]
    wanted = [n for n in kernel if n > 1]
    if (pair.up.shape[0], pair.down.shape[1], size) != (outputs, inputs, wanted):
        raise ValueError(
            f"{file}: {pair.layer}: down has shape {pair.down.shape} and up {pair.up.shape}; the "
            f"layer's weight has shape {layer.published}"
        )
    rank = pair.down.shape[0]
    product = pair.up.reshape(outputs, rank) @ pair.down.reshape(rank, -1)
    return np.float32(pair.alpha / rank) * product.reshape(outputs, inputs, *wanted)


def write(
    file: str | Path,
    pairs: Mapping[str, tuple[ArrayLike, ArrayLike]],
    name: published.Name,
    *,
    scale: float,
    part: str = UNET,
    dtype: DTypeLike = np.float32,
) -> Path:
    """Writes a file as diffusers reads it.

    Args:
      file: is made; an existing one is an error.
      pairs: A (*inputs, rank) and B (rank, *outputs) by the path of their kernel, whose axes these
        are.
      name: the published name of each kernel.
      scale: α / r. B is multiplied by it, because files of this layout mean α = r.
      part: `UNET` or `TEXT`.
      dtype: of the tensors.

    Raises FileExistsError.
    """
    file, tensors = Path(file).expanduser(), {}
    if file.exists():
        raise FileExistsError(f"{file}: exists already")
    for path, (down, up) in pairs.items():
        (place,) = published.all_places(name(path))
        ones = (1,) * place.ones
        down = published.from_ours(np.asarray(down, np.float32), path)
        up = published.from_ours(np.asarray(up, np.float32) * np.float32(scale), path)
        down = down.reshape(*down.shape, *ones)
        up = up.reshape(*up.shape, *(1,) * (down.ndim - 2))
        layer = f"{part}.{place.name.removesuffix('.weight')}"
        for kind, tensor in (("A", down), ("B", up)):
            tensors[f"{layer}.lora_{kind}.weight"] = np.ascontiguousarray(tensor.astype(dtype))
    file.parent.mkdir(parents=True, exist_ok=True)
    tensor_file.write(file, tensors, {"format": "pt"})
    return file
