"""AnimateDiff's motion modules as diffusers stores them (`MotionAdapter`)."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import traverse_util
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vdm_jax.models.blocks.settings import LatentSettings
from vdm_jax.models.blocks.slots import Slots
from vdm_jax.models.latent_unet import LatentUNet
from vdm_jax.models.motion_module import MotionModules, sinusoidal_positions
from vdm_jax.weights import latent_unet, published

CLASS = "MotionAdapter"
_VALUES = {
    "block_out_channels": [320, 640, 1280, 1280],
    "motion_layers_per_block": 2,
    "motion_transformer_layers_per_block": 1,
    "motion_num_attention_heads": 8,
    "motion_norm_num_groups": 32,
    "motion_max_seq_length": 32,
    "use_motion_mid_block": True,
    "motion_transformer_layers_per_mid_block": 1,
}
_FIXED = {"conv_in_channels": None, "motion_mid_block_layers_per_block": 1}
_SUFFIX = "_temporal"  # of the places after attention
_POSITIONS = "positions"  # stored in the files and computed here
_TOLERANCE = 2e-3  # of stored positions, which may be float16
_BLOCK = {
    "norm_0": "norm1",
    **{f"attention_0/{ours}": f"attn1.{name}" for ours, name in latent_unet.PROJECTIONS.items()},
    "norm_1": "norm2",
    **{f"attention_1/{ours}": f"attn2.{name}" for ours, name in latent_unet.PROJECTIONS.items()},
    **latent_unet.MLP,
}


class Loaded(NamedTuple):
    """Motion modules for a slot, and their parameters as NumPy arrays."""

    motion: MotionModules
    params: dict[str, Any]


def read_folder(folder: str | Path, dtype: DTypeLike = np.float32) -> Loaded:
    """The motion modules in a folder, their parameters in `dtype`; see `add_motion`.

    Raises FileNotFoundError; ValueError naming the value of config.json that is not understood, or
    the tensors that are missing, left over or of another shape.
    """
    network = read_config(folder)
    motion = network.slots.after_attention
    tensors = published.Tensors(folder, published.DIFFUSERS)
    wanted = _with_positions(shapes(network), motion)
    names = name_function(network)
    params = traverse_util.flatten_dict(
        published.read_params(tensors, wanted, names, dtype), sep="/"
    )
    for path in [path for path in params if path.endswith(f"/{_POSITIONS}")]:
        stored = params.pop(path).astype(np.float32)
        if np.abs(stored - _positions(stored.shape)).max() > _TOLERANCE:
            raise ValueError(
                f"{folder}: {names(path)} holds other numbers than the sinusoids that are computed"
            )
    return Loaded(motion, traverse_util.unflatten_dict(params, sep="/"))


def write_folder(
    folder: str | Path, network: LatentUNet, params: PyTree, dtype: DTypeLike = np.float32
) -> None:
    """Writes the motion modules of a U-Net as diffusers reads them, without the U-Net.

    params: of the U-Net or of its motion modules, without boxes. Raises FileExistsError;
    ValueError for a network without motion modules.
    """
    motion = network.slots.after_attention
    if not isinstance(motion, MotionModules):
        raise ValueError(f"slots.after_attention = {motion!r}: must be MotionModules")
    own = {name: params[name] for name in shapes(network)}
    flat = traverse_util.flatten_dict(_with_positions(own, motion), sep="/")
    for path, leaf in flat.items():
        if path.endswith(f"/{_POSITIONS}"):
            flat[path] = _positions(leaf.shape)
    published.write_params(
        folder,
        traverse_util.unflatten_dict(flat, sep="/"),
        name_function(network),
        config=config(network),
        stem=published.DIFFUSERS,
        dtype=dtype,
    )


def add_motion(
    network: LatentUNet, params: Mapping[str, Any], motion: Loaded
) -> latent_unet.Loaded:
    """A U-Net with motion modules in its slot, and the parameters of both.

    Raises ValueError if the slot is in use or the modules are made for a U-Net of other sizes.
    """
    if network.slots.after_attention is not None:
        raise ValueError(f"slots.after_attention = {network.slots.after_attention!r}: is in use")
    slots = dataclasses.replace(network.slots, after_attention=motion.motion)
    network = network.clone(slots=slots)
    wanted, found = (
        {path: leaf.shape for path, leaf in traverse_util.flatten_dict(tree, sep="/").items()}
        for tree in (shapes(network), motion.params)
    )
    if wanted != found:
        path = sorted(
            path for path in wanted.keys() | found.keys() if wanted.get(path) != found.get(path)
        )[0]
        raise ValueError(
            f"the motion modules do not fit the U-Net: {path} has shape {found.get(path)}, the "
            f"U-Net asks for {wanted.get(path)}"
        )
    return latent_unet.Loaded(network, {**params, **motion.params})


def read_config(folder: str | Path) -> LatentUNet:
    """A U-Net of the sizes that a folder's config.json describes, with the motion modules in its
    slot and no attention. Raises as `read_folder`."""
    path = Path(folder).expanduser() / "config.json"
    values = latent_unet.understood(path, CLASS, _VALUES, _FIXED, frozenset())
    widths = values["block_out_channels"]

    def each(key: str) -> tuple[int, ...]:
        value = values[key]
        return (value,) * len(widths) if isinstance(value, int) else tuple(value)

    heads, layers = each("motion_num_attention_heads"), each("motion_layers_per_block")
    depths = values["motion_transformer_layers_per_block"]
    in_middle = values["motion_transformer_layers_per_mid_block"]
    depths = {*(depths if isinstance(depths, list) else [depths])}
    depths |= {*(in_middle if isinstance(in_middle, list) else [in_middle])}
    depth = depths.pop()
    if depths or not isinstance(depth, int):
        raise ValueError(
            f"{path}: motion_transformer_layers_per_block, motion_transformer_layers_per_mid_block "
            f"= {values['motion_transformer_layers_per_block']}, {in_middle}: must be one number"
        )
    for key, numbers in (
        ("motion_num_attention_heads", heads),
        ("motion_layers_per_block", layers),
    ):
        if len(numbers) != len(widths):
            raise ValueError(f"{path}: {key} = {numbers}: must have {len(widths)} entries")
    motion = MotionModules(
        heads=latent_unet.simple(heads),
        depth=depth,
        max_frames=values["motion_max_seq_length"],
        norm_groups=values["motion_norm_num_groups"],
        middle=values["use_motion_mid_block"],
    )
    levels = len(widths)
    settings = LatentSettings(depth=(0,) * levels, middle_depth=0, heads=(1,) * levels)
    return LatentUNet(
        unet=latent_unet.skeleton(widths, layers),
        settings=settings,
        slots=Slots(after_attention=motion),
    )


def config(network: LatentUNet) -> dict[str, Any]:
    """The config.json of a network's motion modules."""
    motion = network.slots.after_attention
    heads = motion.heads
    return {
        "_class_name": CLASS,
        "block_out_channels": list(network.unet.widths),
        "motion_layers_per_block": latent_unet.simple(network.unet.num_blocks),
        "motion_transformer_layers_per_block": motion.depth,
        "motion_transformer_layers_per_mid_block": motion.depth,
        "motion_mid_block_layers_per_block": 1,
        "motion_num_attention_heads": heads if isinstance(heads, int) else list(heads),
        "motion_norm_num_groups": motion.norm_groups,
        "motion_max_seq_length": motion.max_frames,
        "use_motion_mid_block": motion.middle,
        "conv_in_channels": None,
    }


def shapes(network: LatentUNet) -> PyTree:
    """The shapes of the parameters of a network's motion modules, without their names."""
    levels = len(network.unet.widths)
    without_attention = dataclasses.replace(network.settings, depth=(0,) * levels, middle_depth=0)
    slots = Slots(after_attention=network.slots.after_attention)
    alone = network.clone(settings=without_attention, slots=slots, controls=())
    found = latent_unet.shapes(alone)
    return {name: leaf for name, leaf in found.items() if name.endswith(_SUFFIX)}


def name_function(network: LatentUNet) -> published.Name:
    """The function from the path of a parameter to its name in diffusers' files."""
    last = network.unet.last

    def name(path: str) -> str:
        top, *inner, leaf = path.split("/")
        place = latent_unet.place_name(top.removesuffix(_SUFFIX), last)
        place = place.replace(".attentions.", ".motion_modules.")
        if leaf == _POSITIONS:
            number = inner[0].removeprefix("block_")
            return f"{place}.transformer_blocks.{number}.pos_embed.pe"
        rest = latent_unet.TRANSFORMER.get("/".join(inner)) or latent_unet.block_name(inner, _BLOCK)
        return f"{place}.{rest}.{'bias' if leaf == 'bias' else 'weight'}"

    return name


def _with_positions(params: PyTree, motion: MotionModules) -> PyTree:
    """With the positions that the files hold as a parameter of each transformer block."""
    flat = traverse_util.flatten_dict(params, sep="/")
    for path, leaf in list(flat.items()):
        if path.endswith("/norm_0/scale"):
            shape = (1, motion.max_frames, *leaf.shape)
            block = path.removesuffix("/norm_0/scale")
            flat[f"{block}/{_POSITIONS}"] = jax.ShapeDtypeStruct(shape, np.float32)
    return traverse_util.unflatten_dict(flat, sep="/")


def _positions(shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(sinusoidal_positions(*shape[1:]))[None]
