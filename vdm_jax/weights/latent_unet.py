"""The latent U-Net of Stable Diffusion 1 and 2 as diffusers stores it (`UNet2DConditionModel`)."""

import functools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vdm_jax.models import layers
from vdm_jax.models.blocks.settings import LatentSettings
from vdm_jax.models.blocks.slots import Slots
from vdm_jax.models.latent_unet import LatentEncoder, LatentUNet
from vdm_jax.models.unet import UNet
from vdm_jax.weights import published

CLASS = "UNet2DConditionModel"
# The values that a network is made of, with the original class's defaults.
ENCODER_VALUES: Mapping[str, Any] = {
    "in_channels": 4,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "block_out_channels": [320, 640, 1280, 1280],
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "norm_eps": 1e-5,
    "cross_attention_dim": 1280,
    "transformer_layers_per_block": 1,
    "attention_head_dim": 8,
    "num_attention_heads": None,
    "use_linear_projection": False,
}
_VALUES = {
    **ENCODER_VALUES,
    "out_channels": 4,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
# Values that change what is computed, with the only one that is computed here.
ENCODER_FIXED: Mapping[str, Any] = {
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "only_cross_attention": False,
    "downsample_padding": 1,
    "mid_block_scale_factor": 1,
    "act_fn": "silu",
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "class_embed_type": None,
    "addition_embed_type": None,
    "num_class_embeds": None,
    "resnet_time_scale_shift": "default",
}
_FIXED = {
    **ENCODER_FIXED,
    "num_attention_heads": None,
    "center_input_sample": False,
    "dropout": 0.0,
    "reverse_transformer_layers_per_block": None,
    "dual_cross_attention": False,
    "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "time_embedding_act_fn": None,
    "timestep_post_act": None,
    "time_cond_proj_dim": None,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "attention_type": "default",
    "class_embeddings_concat": False,
    "mid_block_only_cross_attention": None,
    "cross_attention_norm": None,
}
# Values without effect here: sizes that any input may have, what belongs to parts that are refused
# above, types of arithmetic (softmax is float32 always), and how training averaged.
IGNORED = frozenset(
    {
        "sample_size",
        "upcast_attention",
        "addition_time_embed_dim",
        "addition_embed_type_num_heads",
        "projection_class_embeddings_input_dim",
        "decay",
        "inv_gamma",
        "min_decay",
        "optimization_step",
        "power",
        "update_after_step",
        "use_ema_warmup",
    }
)
_OUTSIDE = {
    "condition/time_in": "time_embedding.linear_1",
    "condition/time_out": "time_embedding.linear_2",
    "input_conv": "conv_in",
    "output_norm": "conv_norm_out",
    "output_conv": "conv_out",
}
_RESIDUAL = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "time": "time_emb_proj",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "shortcut": "conv_shortcut",
}
TRANSFORMER = {"norm": "norm", "project_in": "proj_in", "project_out": "proj_out"}
MLP = {"norm_mlp": "norm3", "mlp/linear_in": "ff.net.0.proj", "mlp/linear_out": "ff.net.2"}
PROJECTIONS = {"query": "to_q", "key": "to_k", "value": "to_v", "out": "to_out.0"}
_BLOCK = {
    "norm_self": "norm1",
    **{f"attention_self/{ours}": f"attn1.{name}" for ours, name in PROJECTIONS.items()},
    "norm_text": "norm2",
    **{f"attention_text/{ours}": f"attn2.{name}" for ours, name in PROJECTIONS.items()},
    **MLP,
}
_PARTS = {"block": "resnets", "attention": "attentions"}


class Loaded(NamedTuple):
    """A network, and its parameters as NumPy arrays."""

    network: LatentUNet
    params: dict[str, Any]


def read_folder(folder: str | Path, dtype: DTypeLike = np.float32) -> Loaded:
    """The U-Net in a folder. Its parameters are kept, and it computes, in `dtype`.

    Raises FileNotFoundError; ValueError naming the value of config.json that is not understood, or
    the tensors that are missing, left over or of another shape.
    """
    network = in_dtype(read_config(folder), dtype)
    tensors = published.Tensors(folder, published.DIFFUSERS)
    names = name_function(network)
    return Loaded(network, published.read_params(tensors, shapes(network), names, dtype))


def write_folder(
    folder: str | Path, network: LatentUNet, params: PyTree, dtype: DTypeLike = np.float32
) -> None:
    """Writes the U-Net as diffusers reads it. Layers in slots and ControlNets are left out.

    params: without boxes. Raises FileExistsError; ValueError for a network of another kind.
    """
    image = {name: params[name] for name in shapes(image_network(network))}
    published.write_params(
        folder,
        image,
        name_function(network),
        config=config(network),
        stem=published.DIFFUSERS,
        dtype=dtype,
    )


def read_config(folder: str | Path) -> LatentUNet:
    """The network that a folder's config.json describes. Raises as `read_folder`."""
    path = Path(folder).expanduser() / "config.json"
    return from_config(published.read_json(path), path)


def from_config(found: Mapping[str, Any], path: Path) -> LatentUNet:
    """The network that a config.json, read from `path`, describes. Raises ValueError."""
    values = understood(found, path, CLASS, _VALUES, _FIXED)
    network = LatentUNet(**encoder_fields(values, path), out_channels=values["out_channels"])
    mirrored = _up_block_types(network.settings.depth)
    if list(values["up_block_types"]) != mirrored:
        raise ValueError(
            f"{path}: up_block_types = {values['up_block_types']}: must mirror down_block_types, "
            f"that is {mirrored}"
        )
    return network


def config(network: LatentUNet) -> dict[str, Any]:
    """The config.json of a network. Raises ValueError if diffusers' class cannot compute it."""
    return {
        "_class_name": CLASS,
        **encoder_config(network),
        "out_channels": network.out_channels,
        "up_block_types": _up_block_types(network.settings.depth),
    }


@functools.lru_cache(maxsize=16)
def shapes(network: LatentUNet) -> PyTree:
    """The shapes of a network's parameters, without their names."""
    text = jnp.zeros((1, 1, network.settings.text_width))
    size = network.multiple
    z = jnp.zeros((1, network.layout.blocks, size, size, network.in_channels))
    cond = {network.text: text}
    return nn.meta.unbox(layers.abstract_params(network, z, jnp.zeros(1), cond))


def image_network(network: LatentUNet) -> LatentUNet:
    """The network without slots and controls."""
    return network.clone(slots=Slots(), controls=())


def in_dtype(network: LatentEncoder, dtype: DTypeLike) -> LatentEncoder:
    """The network that computes in `dtype`."""
    return network if np.dtype(dtype) == network.dtype else network.clone(dtype=np.dtype(dtype))


def name_function(network: LatentEncoder) -> published.Name:
    """The function from the path of a parameter to its name in diffusers' files."""
    last, ones = network.unet.last, 0 if network.settings.linear_projections else 2

    def name(path: str) -> str | published.Place:
        top, *inner, leaf = path.split("/")
        kind = "bias" if leaf == "bias" else "weight"
        module, rest = "/".join([top, *inner]), "/".join(inner)
        if module in _OUTSIDE:
            return f"{_OUTSIDE[module]}.{kind}"
        place = place_name(top, last)
        if rest == "conv":  # the convolution of a change of size
            return f"{place}.conv.{kind}"
        is_projection = rest in ("project_in", "project_out")
        tables = _RESIDUAL if ".resnets." in place else TRANSFORMER
        found = f"{place}.{tables.get(rest) or block_name(inner, _BLOCK)}.{kind}"
        if leaf == "kernel" and (rest == "shortcut" or (is_projection and ones)):
            return published.Place(found, ones=2)
        return found

    return name


def place_name(top: str, last: int) -> str:
    """diffusers' name of a block, "down_blocks.0.resnets.1" of "down_0_block_1"; `last` is the
    coarsest level."""
    if match := re.fullmatch(r"middle_(block|attention)(?:_(\d))?", top):
        return f"mid_block.{_PARTS[match[1]]}.{match[2] or 0}"
    part, level, kind, *number = top.split("_")
    index = int(level) if part == "down" else last - int(level)
    if kind == "resize":
        return f"{part}_blocks.{index}.{part}samplers.0"
    return f"{part}_blocks.{index}.{_PARTS[kind]}.{number[0]}"


def block_name(inner: Sequence[str], table: Mapping[str, str]) -> str:
    """diffusers' name inside a transformer, "transformer_blocks.0.norm1" of block_0/norm_self."""
    number = inner[0].removeprefix("block_")
    return f"transformer_blocks.{number}.{table['/'.join(inner[1:])]}"


def understood(
    found: Mapping[str, Any],
    path: Path,
    class_name: str,
    values: Mapping[str, Any],
    fixed: Mapping[str, Any],
    ignored: frozenset[str] = IGNORED,
) -> dict[str, Any]:
    """The values of a config.json whose every entry is understood.

    Args:
      found: the file's content.
      path: of the file.
      class_name: that it must name.
      values: those that are returned, with defaults.
      fixed: those that must be as they are here.
      ignored: those that may be anything. Entries that begin with an underscore are ignored too.

    Raises ValueError naming the entry, its value and what is allowed.
    """
    published.config_value(found, path, "_class_name", [class_name])
    for key, value in found.items():
        if key in fixed:
            allowed = fixed[key]
            parts = value if isinstance(value, list) else [value]
            if any(part != allowed for part in parts):
                raise ValueError(f"{path}: {key} = {value!r}: allowed is {allowed!r}")
        elif key not in values and key not in ignored and not key.startswith("_"):
            raise ValueError(f"{path}: {key} = {value!r} is not understood")
    return {**values, **{key: found[key] for key in values if key in found}}


def encoder_fields(values: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The fields of a `LatentEncoder` of the values of a config.json. Raises ValueError."""
    widths, types = values["block_out_channels"], values["down_block_types"]
    levels = len(widths)

    def each(key: str) -> tuple[int, ...]:
        """One number for each level."""
        value = values[key]
        numbers = tuple(value) if isinstance(value, list | tuple) else (value,) * levels
        if len(numbers) != levels or not all(isinstance(number, int) for number in numbers):
            raise ValueError(
                f"{path}: {key} = {value!r}: must be a number, or one for each of {levels} levels"
            )
        return numbers

    for block in types:
        if block not in ("CrossAttnDownBlock2D", "DownBlock2D"):
            raise ValueError(
                f"{path}: down_block_types = {types}: allowed are CrossAttnDownBlock2D, DownBlock2D"
            )
    if len(types) != levels:
        raise ValueError(f"{path}: down_block_types = {types}: must have {levels} entries")
    groups = values["norm_num_groups"]
    if not isinstance(groups, int) or any(width % groups for width in widths):
        raise ValueError(f"{path}: norm_num_groups = {groups!r}: must divide {widths}")
    # A misnomer that the original library keeps: this is the number of heads.
    key = "num_attention_heads" if values["num_attention_heads"] else "attention_head_dim"
    text_widths = set(each("cross_attention_dim"))
    if len(text_widths) > 1:
        raise ValueError(
            f"{path}: cross_attention_dim = {values['cross_attention_dim']}: must be one number"
        )
    depth = each("transformer_layers_per_block")
    with_attention = [block.startswith("CrossAttn") for block in types]
    settings = LatentSettings(
        depth=tuple(number * has for number, has in zip(depth, with_attention, strict=True)),
        middle_depth=depth[-1],
        heads=each(key),
        text_width=text_widths.pop(),
        norm_groups=groups,
        epsilon=values["norm_eps"],
        linear_projections=values["use_linear_projection"],
    )
    for width, heads in zip(widths, settings.heads, strict=True):
        if width % heads:
            raise ValueError(f"{path}: {key} = {values[key]}: {heads} heads do not divide {width}")
    return {
        "unet": skeleton(widths, each("layers_per_block")),
        "settings": settings,
        "in_channels": values["in_channels"],
    }


def skeleton(widths: Sequence[int], num_res_blocks: Sequence[int]) -> UNet:
    """The levels of a U-Net of published widths."""
    first = widths[0]
    return UNet(
        channels=first,
        channel_mult=tuple(w / first if w % first else w // first for w in widths),
        num_res_blocks=simple(num_res_blocks),
    )


def simple(numbers: Sequence[int]) -> int | tuple[int, ...]:
    """One number if all are equal."""
    return numbers[0] if len(set(numbers)) == 1 else tuple(numbers)


def encoder_config(network: LatentEncoder) -> dict[str, Any]:
    """The entries of `ENCODER_VALUES` for a network. Raises ValueError."""
    unet, settings = network.unet, network.settings
    depth = [number or settings.middle_depth for number in settings.depth]
    cannot = {
        "conditions": bool(network.conditions),
        "norm_over_frames": settings.norm_over_frames,
        "middle_depth": depth[-1] != settings.middle_depth,
        "patch_size": unet.patch_size != 1,
        "skips": not unet.by_block,
        "norm_groups": any(width % (settings.norm_groups or width + 1) for width in unet.widths),
    }
    if wrong := [name for name, is_wrong in cannot.items() if is_wrong]:
        raise ValueError(f"{', '.join(wrong)}: diffusers' class has no such value")
    types = {True: "CrossAttnDownBlock2D", False: "DownBlock2D"}
    return {
        "in_channels": network.in_channels,
        "down_block_types": [types[bool(number)] for number in settings.depth],
        "block_out_channels": list(unet.widths),
        "layers_per_block": simple(unet.num_blocks),
        "norm_num_groups": settings.norm_groups,
        "norm_eps": settings.epsilon,
        "cross_attention_dim": settings.text_width,
        "transformer_layers_per_block": simple(depth),
        "attention_head_dim": simple(settings.heads),
        "use_linear_projection": settings.linear_projections,
    }


def _up_block_types(depth: Sequence[int]) -> list[str]:
    return ["CrossAttnUpBlock2D" if number else "UpBlock2D" for number in reversed(depth)]
