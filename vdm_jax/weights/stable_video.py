"""The U-Net of Stable Video Diffusion in and out, as diffusers stores it
(`UNetSpatioTemporalConditionModel`)."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vdm_jax.models import layers
from vdm_jax.models.blocks.settings import LatentSettings
from vdm_jax.models.blocks.slots import Slots
from vdm_jax.models.condition import Numbers, RepeatedImage
from vdm_jax.models.frame_blending import FrameResiduals, FrameTransformers
from vdm_jax.models.latent_unet import LatentUNet, NoiseTime
from vdm_jax.weights import latent_unet, published
from vdm_jax.weights.latent_unet import Loaded

CLASS = "UNetSpatioTemporalConditionModel"
# The keys of the condition: the token that pixels attend to, the latents that are concatenated to
# z, and the numbers that are embedded as a vector, in the published order.
CONTEXT, STILL = "still_embedding", "still_latents"
NUMBERS = ("fps_id", "motion_bucket", "augmentation")
SLOTS = Slots(after_residual=FrameResiduals(), in_transformer=FrameTransformers())
# The values that a network is made of, with the class's defaults.
_VALUES: Mapping[str, Any] = {
    "in_channels": 8,
    "out_channels": 4,
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal"] * 3 + ["DownBlockSpatioTemporal"],
    "up_block_types": ["UpBlockSpatioTemporal"] + ["CrossAttnUpBlockSpatioTemporal"] * 3,
    "block_out_channels": [320, 640, 1280, 1280],
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 768,
    "layers_per_block": 2,
    "cross_attention_dim": 1024,
    "num_attention_heads": [5, 10, 20, 20],
    # Not a value of the published class, in which it is 32. A network that is inflated from an
    # image model of other groups keeps those.
    "norm_num_groups": 32,
}
# A deeper transformer would share one embedding of frames' numbers and one blend among its blocks.
_FIXED = {"transformer_layers_per_block": 1}
_IGNORED = frozenset({"sample_size", "num_frames"})  # the network takes any
_EPSILON, _INNER_EPSILON = 1e-5, 1e-6  # constants of the published class
_RESIDUAL = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "time": "time_emb_proj",
    "norm_out": "norm2",
    "conv_out": "conv2",
}
_BLOCK = {
    "norm_in": "norm_in",
    "mlp_in/linear_in": "ff_in.net.0.proj",
    "mlp_in/linear_out": "ff_in.net.2",
    "norm_self": "norm1",
    "norm_text": "norm2",
    **latent_unet.MLP,
    **{f"attention_self/{o}": f"attn1.{name}" for o, name in latent_unet.PROJECTIONS.items()},
    **{f"attention_text/{o}": f"attn2.{name}" for o, name in latent_unet.PROJECTIONS.items()},
}
_TRANSFORMER = {
    "number_in": "time_pos_embed.linear_1",
    "number_out": "time_pos_embed.linear_2",
    **{f"block/{ours}": f"temporal_transformer_blocks.0.{name}" for ours, name in _BLOCK.items()},
}
_NUMBERS = {"numbers_in": "add_embedding.linear_1", "numbers_out": "add_embedding.linear_2"}
_MIX = "time_mixer.mix_factor"
_SUFFIX = "_temporal"  # of the places after residual blocks


def read_folder(folder: str | Path, dtype: DTypeLike = np.float32) -> Loaded:
    """The U-Net in a folder. Its parameters are kept, and it computes, in `dtype`.

    Raises FileNotFoundError; ValueError naming the value of config.json that is not understood, or
    the tensors that are missing, left over or of another shape.
    """
    network = latent_unet.in_dtype(read_config(folder), dtype)
    tensors = published.Tensors(folder, published.DIFFUSERS)
    names = name_function(network)
    return Loaded(network, published.read_params(tensors, shapes(network), names, dtype))


def write_folder(
    folder: str | Path,
    network: LatentUNet,
    params: PyTree,
    dtype: DTypeLike = np.float32,
    *,
    sample_size: tuple[int, int] | None = None,
    num_frames: int = 25,
) -> None:
    """Writes the U-Net as diffusers reads it.

    Args:
      params: without boxes.
      sample_size: height and width of the latents, and num_frames: of the clips, that it was
        trained on.

    Raises FileExistsError; ValueError for a network of another kind.
    """
    recorded = {"sample_size": sample_size and list(sample_size), "num_frames": num_frames}
    published.write_params(
        folder,
        {name: params[name] for name in shapes(network)},
        name_function(network),
        config={**config(network), **recorded},
        stem=published.DIFFUSERS,
        dtype=dtype,
    )


def read_config(folder: str | Path) -> LatentUNet:
    """The network that a folder's config.json describes. Raises as `read_folder`."""
    path = Path(folder).expanduser() / "config.json"
    return from_config(published.read_json(path), path)


def from_config(found: Mapping[str, Any], path: Path) -> LatentUNet:
    """The network that a config.json, read from `path`, describes. Raises ValueError."""
    values = latent_unet.understood(found, path, CLASS, _VALUES, _FIXED, _IGNORED)
    depth = _depth(values, path)
    width, both = values["addition_time_embed_dim"], values["projection_class_embeddings_input_dim"]
    if both != len(NUMBERS) * width:
        raise ValueError(
            f"{path}: projection_class_embeddings_input_dim = {both}: must be "
            f"{len(NUMBERS) * width}, {len(NUMBERS)} times addition_time_embed_dim"
        )
    # The fields of an image U-Net that differ by name or are constants.
    kinds = {True: "CrossAttnDownBlock2D", False: "DownBlock2D"}
    fields = latent_unet.encoder_fields(
        {
            **latent_unet.ENCODER_VALUES,
            **{key: values[key] for key in values.keys() & latent_unet.ENCODER_VALUES.keys()},
            "down_block_types": [kinds[bool(number)] for number in depth],
            "norm_eps": _EPSILON,
            "use_linear_projection": True,
        },
        path,
    )
    settings: LatentSettings = fields.pop("settings")
    return LatentUNet(
        **fields,
        settings=LatentSettings(**{**vars(settings), "inner_epsilon": _INNER_EPSILON}),
        out_channels=values["out_channels"],
        time=NoiseTime(),
        text=CONTEXT,
        conditions=(Numbers(numbers=NUMBERS, width=width),),
        videos=(RepeatedImage(key=STILL),),
        slots=SLOTS,
    )


def _depth(values: Mapping[str, Any], path: Path) -> tuple[int, ...]:
    """Transformer blocks of each level. Raises ValueError."""
    types = list(values["down_block_types"])
    allowed = {"CrossAttnDownBlockSpatioTemporal": 1, "DownBlockSpatioTemporal": 0}
    if unknown := [name for name in types if name not in allowed]:
        raise ValueError(
            f"{path}: down_block_types: {unknown[0]!r}: allowed are {', '.join(allowed)}"
        )
    depth = tuple(allowed[name] for name in types)
    if list(values["up_block_types"]) != _up_block_types(depth):
        raise ValueError(
            f"{path}: up_block_types = {values['up_block_types']}: must mirror down_block_types, "
            f"that is {_up_block_types(depth)}"
        )
    return depth


def config(network: LatentUNet) -> dict[str, Any]:
    """The config.json of a network. Raises ValueError if diffusers' class cannot compute it."""
    settings, numbers = network.settings, [e for e in network.conditions if isinstance(e, Numbers)]
    cannot = {
        "slots": network.slots != SLOTS,
        "controls": bool(network.controls),
        "conditions": [each.numbers for each in network.conditions] != [NUMBERS],
        "videos": len(network.videos) != 1,
        "norm_groups": settings.norm_groups != _VALUES["norm_num_groups"],
        "epsilon": (settings.epsilon, settings.inner_epsilon) != (_EPSILON, _INNER_EPSILON),
        "depth": {*settings.depth, settings.middle_depth} - {0, 1},
        "time": network.time != NoiseTime(),
    }
    if wrong := [name for name, is_wrong in cannot.items() if is_wrong]:
        raise ValueError(f"{', '.join(wrong)}: diffusers' class {CLASS} has no such value")
    return _config(network.clone(conditions=()), numbers[0].width)


def inflated_config(image: LatentUNet) -> dict[str, Any]:
    """The config.json of the network over clips that an image network becomes: `from_config` reads
    it. Its input is z alone. Raises ValueError for sizes that such a network cannot have."""
    settings = image.settings
    if {*settings.depth, settings.middle_depth} - {0, 1} or settings.epsilon != _EPSILON:
        raise ValueError(
            f"depth = {settings.depth}, middle_depth = {settings.middle_depth}, epsilon = "
            f"{settings.epsilon}: must be at most 1, and {_EPSILON}"
        )
    groups = {"norm_num_groups": settings.norm_groups}
    return {**_config(image, _VALUES["addition_time_embed_dim"]), **groups}


def _config(network: LatentUNet, width: int) -> dict[str, Any]:
    """width: of each embedded number."""
    settings, image = network.settings, latent_unet.encoder_config(network)
    kept = ("in_channels", "block_out_channels", "layers_per_block", "cross_attention_dim")
    kinds = {True: "CrossAttnDownBlockSpatioTemporal", False: "DownBlockSpatioTemporal"}
    return {
        "_class_name": CLASS,
        **{key: image[key] for key in kept},
        "out_channels": network.out_channels,
        "down_block_types": [kinds[bool(number)] for number in settings.depth],
        "up_block_types": _up_block_types(settings.depth),
        "addition_time_embed_dim": width,
        "projection_class_embeddings_input_dim": len(NUMBERS) * width,
        "transformer_layers_per_block": 1,
        "num_attention_heads": list(settings.heads),
    }


def _up_block_types(depth: tuple[int, ...]) -> list[str]:
    kinds = {True: "CrossAttnUpBlockSpatioTemporal", False: "UpBlockSpatioTemporal"}
    return [kinds[bool(number)] for number in reversed(depth)]


@functools.lru_cache(maxsize=16)
def shapes(network: LatentUNet) -> PyTree:
    """The shapes of a network's parameters, without their names."""
    size, frames = network.multiple, network.layout.blocks
    further = network.in_channels - network.out_channels
    z = jnp.zeros((1, frames, size, size, network.out_channels))
    cond = {
        network.text: jnp.zeros((1, 1, network.settings.text_width)),
        STILL: jnp.zeros((1, 1, size, size, further)),
        **{number: jnp.zeros(1) for number in NUMBERS},
    }
    return nn.meta.unbox(layers.abstract_params(network, z, jnp.zeros(1), cond))


def name_function(network: LatentUNet) -> published.Name:
    """The function from the path of a parameter to its name in diffusers' files."""
    image_name, last = latent_unet.name_function(network), network.unet.last

    def name(path: str) -> published.Named:
        top, *inner, leaf = path.split("/")
        kind, module = "bias" if leaf == "bias" else "weight", "/".join(inner)
        if module in _NUMBERS:
            return f"{_NUMBERS[module]}.{kind}"
        if top.endswith(_SUFFIX):
            place = latent_unet.place_name(top.removesuffix(_SUFFIX), last)
            if leaf == "mix":
                return f"{place}.{_MIX}"
            return f"{place}.temporal_res_block.{_RESIDUAL[module]}.{kind}"
        if inner and inner[0].startswith("temporal_"):
            place = latent_unet.place_name(top, last)
            if leaf == "mix":
                return f"{place}.{_MIX}"
            return f"{place}.{_TRANSFORMER['/'.join(inner[1:])]}.{kind}"
        found = image_name(path)
        if "_block_" not in top:
            return found
        # A residual block's own tensors lie one level deeper.
        place = latent_unet.place_name(top, last)
        found, ones = (found.name, found.ones) if isinstance(found, published.Place) else (found, 0)
        inside = found.replace(place, f"{place}.spatial_res_block", 1)
        return published.Place(inside, ones=ones)

    return name
