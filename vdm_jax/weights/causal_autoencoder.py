"""The published weights of Wan 2.1's video autoencoder (`models/causal_autoencoder.py`), in and
out: diffusers' folders of `AutoencoderKLWan`, and single files with the original names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vdm_jax.models import layers
from vdm_jax.models.causal_autoencoder import CausalAutoencoder
from vdm_jax.weights import published
from vdm_jax.weights.latent_unet import understood

CLASS = "AutoencoderKLWan"
_DEFAULT = CausalAutoencoder()
# The values that a network is made of, with the published class's defaults.
_VALUES: Mapping[str, Any] = {
    "base_dim": 96,
    "decoder_base_dim": None,
    "z_dim": 16,
    "dim_mult": [1, 2, 4, 4],
    "num_res_blocks": 2,
    "temperal_downsample": [False, True, True],
    "latents_mean": list(_DEFAULT.latent_mean),
    "latents_std": list(_DEFAULT.latent_std),
    "in_channels": 3,
    "out_channels": 3,
    "scale_factor_temporal": 4,
    "scale_factor_spatial": 8,
}
# Values that change what is computed, with the only one that is computed here. The others are those
# of Wan 2.2's autoencoder.
_FIXED: Mapping[str, Any] = {
    "attn_scales": [],
    "dropout": 0.0,
    "is_residual": False,
    "patch_size": None,
}


class Loaded(NamedTuple):
    """A network and its parameters as NumPy arrays."""

    network: CausalAutoencoder
    params: dict[str, Any]


def read_folder(folder: str | Path, dtype: DTypeLike = np.float32) -> Loaded:
    """The autoencoder in a folder; its parameters are kept, and it computes, in `dtype`.

    Raises FileNotFoundError; ValueError naming the file, and the value that is not understood or
    the tensor that is missing, left over or of another shape than config.json says.
    """
    network = read_config(folder)
    return _read(published.Tensors(folder, published.DIFFUSERS), network, dtype)


def read_file(
    file: str | Path, network: CausalAutoencoder = _DEFAULT, dtype: DTypeLike = np.float32
) -> Loaded:
    """The autoencoder of a single .safetensors file, which holds no configuration: that of
    `network`. Raises as `read_folder`."""
    return _read(published.open_file(file), network, dtype)


def _read(tensors: published.Tensors, network: CausalAutoencoder, dtype: DTypeLike) -> Loaded:
    blocks = network.layers_per_level
    params = published.read_params(
        tensors,
        shapes(network),
        name_function(network),
        dtype,
        renamed=lambda found: _renamed(found, blocks),
    )
    return Loaded(network.clone(dtype=np.dtype(dtype)), params)


def write_folder(
    folder: str | Path, network: CausalAutoencoder, params: PyTree, dtype: DTypeLike = np.float32
) -> None:
    """Writes the autoencoder as `read_folder` and diffusers read it, in `dtype`.

    Raises FileExistsError for a folder that holds a network; ValueError where diffusers' class
    cannot have the network's widths.
    """
    published.write_params(
        folder,
        params,
        name_function(network),
        config=config(network),
        stem=published.DIFFUSERS,
        dtype=dtype,
    )


def shapes(network: CausalAutoencoder) -> PyTree:
    """The shapes of an autoencoder's parameters. Nothing is computed."""
    return jax.tree.map(
        lambda leaf: leaf.value,
        network.abstract_params(),
        is_leaf=lambda leaf: isinstance(leaf, layers.Named),
    )


# --- configurations -------------------------------------------------------------------------------


def read_config(folder: str | Path) -> CausalAutoencoder:
    """The network that a folder's config.json describes, computing in float32.

    Raises FileNotFoundError; ValueError naming the class or the value that is not understood.
    """
    path = Path(folder).expanduser() / "config.json"
    return from_config(published.read_json(path), path)


def from_config(found: Mapping[str, Any], path: Path) -> CausalAutoencoder:
    """The network that a config.json, read from `path`, describes. Raises ValueError."""
    values = understood(found, path, CLASS, _VALUES, _FIXED, frozenset())
    multiples, halves_time = values["dim_mult"], tuple(values["temperal_downsample"])
    if multiples[0] != 1:
        raise ValueError(f"{path}: dim_mult = {multiples}: the first must be 1")
    if len(halves_time) != len(multiples) - 1:
        raise ValueError(
            f"{path}: temperal_downsample = {list(halves_time)}: must have one entry less than "
            f"dim_mult = {multiples}"
        )
    for key in ("latents_mean", "latents_std"):
        if len(values[key]) != values["z_dim"]:
            raise ValueError(
                f"{path}: {key} has {len(values[key])} numbers: must have z_dim = {values['z_dim']}"
            )
    decoder = values["decoder_base_dim"]
    network = CausalAutoencoder(
        in_channels=values["in_channels"],
        out_channels=values["out_channels"],
        channels=tuple(values["base_dim"] * multiple for multiple in multiples),
        decoder_channels=None if decoder is None else tuple(decoder * n for n in multiples),
        halves_time=halves_time,
        layers_per_level=values["num_res_blocks"],
        latent_channels=values["z_dim"],
        latent_mean=tuple(values["latents_mean"]),
        latent_std=tuple(values["latents_std"]),
    )
    # A pipeline takes the sizes of latents from these two, the network from its levels.
    for key, size in (
        ("scale_factor_temporal", network.frame_factor),
        ("scale_factor_spatial", network.factor),
    ):
        if key in found and found[key] != size:
            raise ValueError(f"{path}: {key} = {found[key]}: the levels make it {size}")
    return network


def config(network: CausalAutoencoder) -> dict[str, Any]:
    """The config.json of a network. Raises ValueError if diffusers' class cannot compute it."""
    widths, base = network.channels, network.channels[0]
    if any(width % base for width in widths):
        raise ValueError(f"channels = {widths}: must be multiples of the first")
    multiples = [width // base for width in widths]
    decoder = network.decoder_channels
    if decoder is not None and decoder != tuple(decoder[0] * n for n in multiples):
        raise ValueError(f"decoder_channels = {decoder}: must be {multiples} times the first")
    return {
        "_class_name": CLASS,
        "base_dim": base,
        "decoder_base_dim": None if decoder is None else decoder[0],
        "z_dim": network.latent_channels,
        "dim_mult": multiples,
        "num_res_blocks": network.layers_per_level,
        "temperal_downsample": list(network.halves_time),
        "latents_mean": list(network.latent_mean),
        "latents_std": list(network.latent_std),
        "in_channels": network.in_channels,
        "out_channels": network.out_channels,
        "scale_factor_temporal": network.frame_factor,
        "scale_factor_spatial": network.factor,
        **_FIXED,
    }


# --- names ----------------------------------------------------------------------------------------

_IN_RESIDUAL = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "shortcut": "conv_shortcut",
}
_IN_ATTENTION = {"norm": "norm", "query_key_value": "to_qkv", "out": "proj"}
_IN_RESIZE = {"conv": "resample.1", "time_conv": "time_conv"}


def name_function(network: CausalAutoencoder) -> published.Name:
    """The function from the path of a parameter to its name in diffusers' files."""
    blocks = network.layers_per_level

    def name(path: str) -> published.Place:
        *modules, leaf = path.split("/")
        kind = {"kernel": "weight", "scale": "gamma"}.get(leaf, leaf)
        if len(modules) < 3:  # quant_conv, or encoder/norm_out
            parts, ones = modules, 3
        elif modules[1] in ("conv_in", "conv_out"):
            parts, ones = modules[:2], 0
        else:
            part, block, inner, *_ = modules
            place, table = _block(block, blocks)
            parts = [part, place, table[inner]]
            ones = 2 if table is _IN_ATTENTION else 3
        is_convolution = modules[-1] in ("conv", "time_conv")
        return published.Place(
            ".".join([*parts, kind]), ones=0 if leaf == "bias" or is_convolution else ones
        )

    return name


def _block(block: str, blocks: int) -> tuple[str, Mapping[str, str]]:
    """diffusers' name of a block, "down_blocks.3" of "down_1_residual_0", and the names in it."""
    if block == "mid_attention":
        return "mid_block.attentions.0", _IN_ATTENTION
    part, *rest = block.split("_")
    if part == "mid":
        return f"mid_block.resnets.{rest[1]}", _IN_RESIDUAL
    level, kind, *number = rest
    table = _IN_RESIDUAL if kind == "residual" else _IN_RESIZE
    if part == "down":  # one list of all levels' blocks
        place = int(level) * (blocks + 1) + int(number[0] if number else blocks)
        return f"down_blocks.{place}", table
    inner = f"resnets.{number[0]}" if number else "upsamplers.0"
    return f"up_blocks.{level}.{inner}", table


# The original names as regular expressions, and diffusers'.
_ORIGINAL = (
    (r"^conv1\.", "quant_conv."),
    (r"^conv2\.", "post_quant_conv."),
    (r"^(encoder|decoder)\.conv1\.", r"\1.conv_in."),
    (r"\.head\.0\.", ".norm_out."),
    (r"\.head\.2\.", ".conv_out."),
    (r"\.middle\.1\.", ".mid_block.attentions.0."),
    (r"\.middle\.(0|2)\.", lambda found: f".mid_block.resnets.{int(found[1]) // 2}."),
    (r"\.downsamples\.", ".down_blocks."),
    (r"\.residual\.0\.", ".norm1."),
    (r"\.residual\.2\.", ".conv1."),
    (r"\.residual\.3\.", ".norm2."),
    (r"\.residual\.6\.", ".conv2."),
    (r"\.shortcut\.", ".conv_shortcut."),
)


def _renamed(found: str, blocks: int) -> str:
    """diffusers' name of a tensor in a file, which may be an original one."""
    for pattern, replacement in _ORIGINAL:
        found = re.sub(pattern, replacement, found)
    if old := re.fullmatch(r"decoder\.upsamples\.(\d+)\.(.*)", found):
        level, number = divmod(int(old[1]), blocks + 2)
        inner = f"resnets.{number}" if number <= blocks else "upsamplers.0"
        return f"decoder.up_blocks.{level}.{inner}.{old[2]}"
    return found
