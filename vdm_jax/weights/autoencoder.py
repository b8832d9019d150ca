"""The published weights of the autoencoders of `models/autoencoder.py`, in and out: folders of
config.json and diffusion_pytorch_model.safetensors, or its shards."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vdm_jax.models import autoencoder as networks
from vdm_jax.models import layers
from vdm_jax.weights import published

# The last one is ours; no published library reads it.
CLASSES = (
    "AutoencoderKL",
    "AutoencoderKLTemporalDecoder",
    "AutoencoderTiny",
    "AutoencoderKLFrameDecoder",
)
# Neither encode nor decode depends on these: the size of tiles, whether a pipeline computes in
# float32 whatever it is asked for, and how TAESD's latents become bytes.
_IGNORED = {"sample_size", "force_upcast", "latent_magnitude", "latent_shift", "block_out_channels"}
_DOWN, _UP = "DownEncoderBlock2D", "UpDecoderBlock2D"


class Loaded(NamedTuple):
    """A network and its parameters as NumPy arrays."""

    network: networks.Autoencoder
    params: dict[str, Any]


def read_folder(folder: str | Path, dtype: DTypeLike = np.float32) -> Loaded:
    """The autoencoder in a folder; its parameters are kept, and it computes, in `dtype`.

    Files with the names of before 2023, and those of the original Stable Diffusion, are read too.
    Raises FileNotFoundError; ValueError naming the file, and the value that is not understood or
    the tensor that is missing, left over or of another shape than config.json says.
    """
    network = read_config(folder).clone(dtype=dtype)
    tensors = published.Tensors(folder, published.DIFFUSERS)

    def renamed(found: str) -> str:
        return _renamed(found, network.factor.bit_length())

    axes = {renamed(found): len(tensors.shape(found)) for found in tensors.names()}

    def place(path: str) -> published.Place:
        found = name(path)
        if "/mid_attention/" in path and path.endswith("/kernel"):
            # Linear layers, or in original files 1 x 1 convolutions.
            return published.Place(found.name, ones=max(axes.get(found.name, 2) - 2, 0))
        return found

    params = published.read_params(tensors, shapes(network), place, dtype, renamed=renamed)
    return Loaded(network, params)


def write_folder(
    folder: str | Path,
    network: networks.Autoencoder,
    params: PyTree,
    dtype: DTypeLike = np.float32,
) -> None:
    """Writes the autoencoder as `read_folder` and the published library read it, in `dtype`.

    Raises FileExistsError for a folder that holds a network.
    """
    stem = published.DIFFUSERS
    published.write_params(folder, params, name, config=config(network), stem=stem, dtype=dtype)


def shapes(network: networks.Autoencoder) -> PyTree:
    """The shapes of an autoencoder's parameters. Nothing is computed."""
    return jax.tree.map(
        lambda leaf: leaf.value,
        network.abstract_params(),
        is_leaf=lambda leaf: isinstance(leaf, layers.Named),
    )


# --- configurations -------------------------------------------------------------------------------


def read_config(folder: str | Path) -> networks.Autoencoder:
    """The network that a folder's config.json describes, computing in float32.

    Raises FileNotFoundError; ValueError naming the class or the value that is not understood.
    """
    path = Path(folder).expanduser() / "config.json"
    return from_config(published.read_json(path), path)


def from_config(found: Mapping[str, Any], path: Path) -> networks.Autoencoder:
    """The network that a config.json, read from `path`, describes, computing in float32. Raises
    ValueError naming the class or the value that is not understood."""
    values = _Values(found, path)
    kind = published.config_value(values.config, values.path, "_class_name", CLASSES)
    network = _READ[kind](values)
    values.check_unread(kind)
    return network


def config(network: networks.Autoencoder) -> dict[str, Any]:
    """The config.json of a network."""
    kind = type(network).__name__
    return {"_class_name": kind, **_CONFIGS[kind](network)}


class _Values:
    """The values of a config.json. A value that is not there is the published class's default."""

    def __init__(self, config: Mapping[str, Any], path: Path):
        self.path, self.config = path, config
        self._read = set(_IGNORED)

    def __call__(self, name: str, default: Any, allowed: Sequence[Any] | None = None) -> Any:
        """A value, lists as tuples. Raises ValueError where it is not `allowed`."""
        self._read.add(name)
        value = self.config.get(name, default)
        value = tuple(value) if isinstance(value, list) else value
        if allowed is not None and value not in allowed:
            raise ValueError(f"{self.path}: {name} = {value!r}: allowed are {tuple(allowed)}")
        return value

    def check_unread(self, kind: str) -> None:
        """Raises ValueError for values of which nothing is known."""
        unread = sorted(n for n in self.config if n not in self._read and not n.startswith("_"))
        if unread:
            values = ", ".join(f"{name} = {self.config[name]!r}" for name in unread)
            raise ValueError(f"{self.path}: {values}: {kind} is not known to have such a value")


def _common(value: _Values, groups: int, blocks: Mapping[str, str]) -> dict[str, Any]:
    """The fields that `AutoencoderKL` and `AutoencoderKLTemporalDecoder` share."""
    widths = value("block_out_channels", (64,))
    for name, block in blocks.items():
        if value(name, (block,)) != (block,) * len(widths):
            raise ValueError(
                f"{value.path}: {name} = {value(name, (block,))}: allowed is {block} for each of "
                f"the {len(widths)} block_out_channels"
            )
    if any(width % groups for width in widths):
        raise ValueError(
            f"{value.path}: block_out_channels = {widths}: must be multiples of {groups}, the "
            "groups of normalisations"
        )
    return {
        "in_channels": value("in_channels", 3),
        "out_channels": value("out_channels", 3),
        "channels": widths,
        "latent_channels": value("latent_channels", 4),
        "scaling_factor": value("scaling_factor", 0.18215),
    }


def _kl(
    value: _Values, kind: type[networks.AutoencoderKL] = networks.AutoencoderKL
) -> networks.AutoencoderKL:
    value("act_fn", "silu", ["silu"])
    value("latents_mean", None, [None])
    value("latents_std", None, [None])
    groups = value("norm_num_groups", 32)
    return kind(
        **_common(value, groups, {"down_block_types": _DOWN, "up_block_types": _UP}),
        layers_per_level=value("layers_per_block", 1),
        norm_groups=groups,
        attention=value("mid_block_add_attention", True),
        use_quant_conv=value("use_quant_conv", True),
        use_post_quant_conv=value("use_post_quant_conv", True),
        shift_factor=value("shift_factor", None) or 0.0,
    )


def _temporal(value: _Values) -> networks.AutoencoderKLTemporalDecoder:
    network = networks.AutoencoderKLTemporalDecoder
    # With any other number the published decoder does not use all of its blocks.
    value("layers_per_block", 1, [network.layers_per_level])
    return network(**_common(value, network.norm_groups, {"down_block_types": _DOWN}))


def _tiny(value: _Values) -> networks.AutoencoderTiny:
    value("act_fn", "relu", ["relu"])
    value("upsample_fn", "nearest", ["nearest"])
    value("upsampling_scaling_factor", 2, [2])
    blocks, all_widths = {}, []
    for part, usual in (("encoder", (1, 3, 3, 3)), ("decoder", (3, 3, 3, 1))):
        blocks[part] = value(f"num_{part}_blocks", usual)
        widths = value(f"{part}_block_out_channels", (64, 64, 64, 64))
        if len(widths) != len(blocks[part]):
            raise ValueError(
                f"{value.path}: {part}_block_out_channels = {widths}: must be as many as "
                f"num_{part}_blocks = {blocks[part]}"
            )
        all_widths += widths
    if len(set(all_widths)) != 1:
        raise ValueError(
            f"{value.path}: encoder_block_out_channels and decoder_block_out_channels hold "
            f"{sorted(set(all_widths))}: all layers must have one width"
        )
    return networks.AutoencoderTiny(
        in_channels=value("in_channels", 3),
        out_channels=value("out_channels", 3),
        channels=all_widths[0],
        latent_channels=value("latent_channels", 4),
        encoder_blocks=blocks["encoder"],
        decoder_blocks=blocks["decoder"],
        scaling_factor=value("scaling_factor", 1.0),
        shift_factor=value("shift_factor", 0.0),
    )


def _frame_decoder(value: _Values) -> networks.AutoencoderKL:
    return _kl(value, networks.AutoencoderKLFrameDecoder)


_READ: Mapping[str, Callable[[_Values], networks.Autoencoder]] = {
    "AutoencoderKL": _kl,
    "AutoencoderKLTemporalDecoder": _temporal,
    "AutoencoderTiny": _tiny,
    "AutoencoderKLFrameDecoder": _frame_decoder,
}


def _common_config(
    network: networks.AutoencoderKL | networks.AutoencoderKLTemporalDecoder,
) -> dict[str, Any]:
    return {
        "in_channels": network.in_channels,
        "out_channels": network.out_channels,
        "down_block_types": [_DOWN] * len(network.channels),
        "block_out_channels": list(network.channels),
        "layers_per_block": network.layers_per_level,
        "latent_channels": network.latent_channels,
        "scaling_factor": network.scaling_factor,
    }


def _kl_config(network: networks.AutoencoderKL) -> dict[str, Any]:
    return {
        **_common_config(network),
        "up_block_types": [_UP] * len(network.channels),
        "act_fn": "silu",
        "norm_num_groups": network.norm_groups,
        "mid_block_add_attention": network.attention,
        "use_quant_conv": network.use_quant_conv,
        "use_post_quant_conv": network.use_post_quant_conv,
        "shift_factor": network.shift_factor or None,
    }


def _tiny_config(network: networks.AutoencoderTiny) -> dict[str, Any]:
    return {
        "in_channels": network.in_channels,
        "out_channels": network.out_channels,
        "latent_channels": network.latent_channels,
        "num_encoder_blocks": list(network.encoder_blocks),
        "num_decoder_blocks": list(network.decoder_blocks),
        "encoder_block_out_channels": [network.channels] * len(network.encoder_blocks),
        "decoder_block_out_channels": [network.channels] * len(network.decoder_blocks),
        "act_fn": "relu",
        "upsample_fn": "nearest",
        "upsampling_scaling_factor": 2,
        "scaling_factor": network.scaling_factor,
        "shift_factor": network.shift_factor,
    }


_CONFIGS: Mapping[str, Callable[[Any], dict[str, Any]]] = {
    "AutoencoderKL": _kl_config,
    "AutoencoderKLTemporalDecoder": _common_config,
    "AutoencoderTiny": _tiny_config,
    "AutoencoderKLFrameDecoder": _kl_config,
}


# --- names ----------------------------------------------------------------------------------------

_IN_BLOCK = {
    "norm_in": "norm1",
    "conv_in": "conv1",
    "norm_out": "norm2",
    "conv_out": "conv2",
    "shortcut": "conv_shortcut",
    "norm": "group_norm",
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
    "spatial": "spatial_res_block",
    "temporal": "temporal_res_block",
    "conv": "conv",
}
_OUTSIDE = {"norm_out": "conv_norm_out", "frame_conv_out": "time_conv_out"}
# Our names of blocks and of a tiny network's layers as regular expressions, and the published ones.
_BLOCKS = (
    (r"mid_residual_(\d+)", r"mid_block.resnets.\1"),
    (r"mid_residual_(\d+)_temporal", r"mid_block.temporal_resnets.\1"),
    (r"mid_attention", r"mid_block.attentions.0"),
    (r"(down|up)_(\d+)_residual_(\d+)", r"\1_blocks.\2.resnets.\3"),
    (r"up_(\d+)_residual_(\d+)_temporal", r"up_blocks.\1.temporal_resnets.\2"),
    (r"(down|up)_(\d+)_(downsample|upsample)", r"\1_blocks.\2.\3rs.0"),
    (r"layer_(\d+)", r"layers.\1"),
    (r"conv_(\d)", lambda found: f"conv.{2 * int(found[1])}"),
)
_DENSE_CONVOLUTIONS = ("shortcut", "quant_conv", "post_quant_conv")


def name(path: str) -> published.Place:
    """The published name of a parameter of one of the autoencoders, by its path."""
    *modules, leaf = path.split("/")
    in_block = len(modules) > 2
    parts = modules[:1]
    for module in modules[1:]:
        usual = _IN_BLOCK if in_block else _OUTSIDE
        parts.append(usual.get(module) or _replaced(module))
    if leaf == "mix":
        return published.Place(".".join([*parts, "time_mixer.mix_factor"]))
    kind = "bias" if leaf == "bias" else "weight"
    is_convolution = leaf == "kernel" and modules[-1] in _DENSE_CONVOLUTIONS
    return published.Place(".".join([*parts, kind]), ones=2 if is_convolution else 0)


def _replaced(module: str) -> str:
    for pattern, replacement in _BLOCKS:
        if re.fullmatch(pattern, module):
            return re.sub(pattern, replacement, module)
    return module


# The names of the attention before 2023, and in the original files.
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_ORIGINAL_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v"}
_ORIGINAL_ATTENTION |= {"proj_out": "to_out.0"}


def _renamed(found: str, levels: int) -> str:
    """Today's name of a tensor in a file, for an autoencoder of so many levels."""
    found = found.removeprefix("first_stage_model.")
    if old := re.fullmatch(r"(.*\.attentions\.0)\.(query|key|value|proj_attn)\.(\w+)", found):
        return f"{old[1]}.{_OLD_ATTENTION[old[2]]}.{old[3]}"
    if old := re.fullmatch(r"(\w+)\.mid\.block_(\d)\.(.*)", found):
        return f"{old[1]}.mid_block.resnets.{int(old[2]) - 1}.{old[3]}"
    if old := re.fullmatch(r"(\w+)\.mid\.attn_1\.(\w+)\.(\w+)", found):
        return f"{old[1]}.mid_block.attentions.0.{_ORIGINAL_ATTENTION[old[2]]}.{old[3]}"
    if old := re.fullmatch(r"(\w+)\.(down|up)\.(\d+)\.(block|\w+sample)\.(.*)", found):
        part, way, level, block, rest = old.groups()
        # The original decoder counts its levels from the finest.
        number = int(level) if way == "down" else levels - 1 - int(level)
        rest = rest.replace("nin_shortcut", "conv_shortcut")
        inner = f"resnets.{rest}" if block == "block" else f"{block}rs.0.{rest}"
        return f"{part}.{way}_blocks.{number}.{inner}"
    return re.sub(r"^(encoder|decoder)\.norm_out\.", r"\1.conv_norm_out.", found)
