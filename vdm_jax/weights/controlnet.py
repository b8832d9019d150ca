"""ControlNet for Stable Diffusion 1 and 2 as diffusers stores it (`ControlNetModel`)."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vdm_jax.models import layers
from vdm_jax.models.controlnet import ControlNet
from vdm_jax.weights import latent_unet, published

CLASS = "ControlNetModel"
_VALUES = {
    **latent_unet.ENCODER_VALUES,
    "conditioning_channels": 3,
    "conditioning_embedding_out_channels": [16, 32, 96, 256],
    "global_pool_conditions": False,
}
_FIXED = {**latent_unet.ENCODER_FIXED, "controlnet_conditioning_channel_order": "rgb"}


class Loaded(NamedTuple):
    """A network, and its parameters as NumPy arrays."""

    network: ControlNet
    params: dict[str, Any]


def read_folder(folder: str | Path, dtype: DTypeLike = np.float32) -> Loaded:
    """The ControlNet in a folder. Its parameters are kept, and it computes, in `dtype`.

    Raises FileNotFoundError; ValueError naming the value of config.json that is not understood, or
    the tensors that are missing, left over or of another shape.
    """
    network = latent_unet.in_dtype(read_config(folder), dtype)
    tensors = published.Tensors(folder, published.DIFFUSERS)
    names = name_function(network)
    return Loaded(network, published.read_params(tensors, shapes(network), names, dtype))


def write_folder(
    folder: str | Path, network: ControlNet, params: PyTree, dtype: DTypeLike = np.float32
) -> None:
    """Writes the ControlNet as diffusers reads it. Layers in slots are left out.

    params: without boxes. Raises FileExistsError; ValueError for a network of another kind.
    """
    published.write_params(
        folder,
        {name: params[name] for name in shapes(network.clone(slots=latent_unet.Slots()))},
        name_function(network),
        config=config(network),
        stem=published.DIFFUSERS,
        dtype=dtype,
    )


def read_config(folder: str | Path) -> ControlNet:
    """The network that a folder's config.json describes. Raises as `read_folder`."""
    path = published.find_folder(folder) / "config.json"
    values = latent_unet.understood(published.read_json(path), path, CLASS, _VALUES, _FIXED)
    return ControlNet(
        **latent_unet.encoder_fields(values, path),
        hint_channels=values["conditioning_channels"],
        hint_widths=tuple(values["conditioning_embedding_out_channels"]),
        pools=values["global_pool_conditions"],
    )


def config(network: ControlNet) -> dict[str, Any]:
    """The config.json of a network. Raises ValueError if diffusers' class cannot compute it."""
    return {
        "_class_name": CLASS,
        **latent_unet.encoder_config(network),
        "conditioning_channels": network.hint_channels,
        "conditioning_embedding_out_channels": list(network.hint_widths),
        "global_pool_conditions": network.pools,
    }


@functools.lru_cache(maxsize=16)
def shapes(network: ControlNet) -> PyTree:
    """The shapes of a network's parameters, without their names."""
    frames, size = network.layout.blocks, network.multiple
    hint_size = size * 2 ** (len(network.hint_widths) - 1)
    z = jnp.zeros((1, frames, size, size, network.in_channels))
    cond = {network.text: jnp.zeros((1, 1, network.settings.text_width))}
    hint = jnp.zeros((1, frames, hint_size, hint_size, network.hint_channels))
    return nn.meta.unbox(layers.abstract_params(network, z, jnp.zeros(1), cond, hint))


def name_function(network: ControlNet) -> published.Name:
    """The function from the path of a parameter to its name in diffusers' files."""
    encoder = latent_unet.name_function(network)

    def name(path: str) -> str | published.Place:
        top, *inner, leaf = path.split("/")
        kind = "bias" if leaf == "bias" else "weight"
        if top == "hint":
            part = inner[0].removeprefix("conv_")
            part = f"blocks.{part}" if part.isdigit() else inner[0]
            return f"controlnet_cond_embedding.{part}.{kind}"
        if not top.startswith("residual_"):
            return encoder(path)
        number = top.removeprefix("residual_")
        part = f"down_blocks.{number}" if number.isdigit() else "mid_block"
        return published.Place(f"controlnet_{part}.{kind}", ones=2 * (leaf == "kernel"))

    return name
