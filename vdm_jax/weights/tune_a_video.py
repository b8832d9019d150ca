"""The U-Net of Tune-A-Video in and out, as its code stores it (`UNet3DConditionModel` of a
`TuneAVideoPipeline`; another class of diffusers has the same name).

It has the image U-Net's tensors and, in each transformer block, those of an attention over frames.
Its normalisations take their statistics over all frames of a clip.
"""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vdm_jax.models.blocks.cross_frame import FIRST_AND_PREVIOUS, CrossFrame
from vdm_jax.models.blocks.slots import Slots
from vdm_jax.models.frame_attention import FrameAttentions
from vdm_jax.models.latent_unet import LatentUNet
from vdm_jax.weights import latent_unet, published
from vdm_jax.weights.latent_unet import Loaded

CLASS = "UNet3DConditionModel"
SLOTS = Slots(
    self_attention=CrossFrame(frames=FIRST_AND_PREVIOUS), in_transformer=FrameAttentions()
)
_TYPES = ("down_block_types", "up_block_types")
_MIDDLE = "mid_block_type"
_LAYER = {
    "norm": "norm_temp",
    **{f"attention/{ours}": f"attn_temp.{name}" for ours, name in latent_unet.PROJECTIONS.items()},
}


def read_folder(folder: str | Path, dtype: DTypeLike = np.float32) -> Loaded:
    """The U-Net in a folder. Its parameters are kept, and it computes, in `dtype`.

    Raises FileNotFoundError; ValueError naming the value of config.json that is not understood, or
    the tensors that are missing, left over or of another shape.
    """
    path = Path(folder).expanduser() / "config.json"
    network = latent_unet.in_dtype(from_config(published.read_json(path), path), dtype)
    tensors = published.Tensors(folder, published.DIFFUSERS)
    shapes, names = latent_unet.shapes(network), name_function(network)
    return Loaded(network, published.read_params(tensors, shapes, names, dtype))


def write_folder(
    folder: str | Path, network: LatentUNet, params: PyTree, dtype: DTypeLike = np.float32
) -> None:
    """Writes the U-Net as Tune-A-Video's code reads it.

    params: without boxes. Raises FileExistsError; ValueError for a network of another kind.
    """
    published.write_params(
        folder,
        params,
        name_function(network),
        config=config(network),
        stem=published.DIFFUSERS,
        dtype=dtype,
    )


def from_config(found: Mapping[str, Any], path: Path) -> LatentUNet:
    """The network that a config.json, read from `path`, describes. Raises ValueError."""
    image = latent_unet.from_config(image_config(found, path), path)
    settings = dataclasses.replace(image.settings, norm_over_frames=True)
    return image.clone(settings=settings, slots=SLOTS)


def image_config(found: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The config.json of the image U-Net that the one of a config.json extends. Raises
    ValueError."""
    published.config_value(found, path, "_class_name", [CLASS])
    values = {**found, "_class_name": latent_unet.CLASS}
    for key in _TYPES:
        names = published.config_value(found, path, key)
        if wrong := [name for name in names if not str(name).endswith("Block3D")]:
            raise ValueError(f"{path}: {key} = {names}: {wrong[0]!r} is no block of {CLASS}")
        values[key] = [_in_2d(name) for name in names]
    if _MIDDLE in found:
        values[_MIDDLE] = _in_2d(str(found[_MIDDLE]))
    return values


def config(network: LatentUNet) -> dict[str, Any]:
    """The config.json of a network. Raises ValueError if Tune-A-Video's class cannot compute
    it."""
    settings = network.settings
    cannot = {
        "slots": network.slots != SLOTS,
        "controls": bool(network.controls),
        "videos": bool(network.videos),
        "norm_over_frames = False": not settings.norm_over_frames,
        "depth": bool({*settings.depth, settings.middle_depth} - {0, 1}),
    }
    if wrong := [name for name, is_wrong in cannot.items() if is_wrong]:
        raise ValueError(f"{', '.join(wrong)}: Tune-A-Video's class {CLASS} has no such value")
    image = network.clone(
        slots=Slots(), settings=dataclasses.replace(settings, norm_over_frames=False)
    )
    values = latent_unet.config(image)
    del values["transformer_layers_per_block"]  # one, always
    types = {key: [name.replace("2D", "3D") for name in values[key]] for key in _TYPES}
    return {**values, **types, "_class_name": CLASS, _MIDDLE: "UNetMidBlock3DCrossAttn"}


def name_function(network: LatentUNet) -> published.Name:
    """The function from the path of a parameter to its name in the files."""
    image_name, last = latent_unet.name_function(network), network.unet.last

    def name(path: str) -> published.Named:
        match = re.fullmatch(r"(\w+)/temporal_(\d+)/(.+)/(\w+)", path)
        if match is None:
            return image_name(path)
        top, number, module, leaf = match.groups()
        block = f"{latent_unet.place_name(top, last)}.transformer_blocks.{number}"
        return f"{block}.{_LAYER[module]}.{'bias' if leaf == 'bias' else 'weight'}"

    return name


def _in_2d(name: str) -> str:
    return name.replace("Block3D", "Block2D")
