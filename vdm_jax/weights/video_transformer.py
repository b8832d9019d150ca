"""The published weights of Wan 2.1's transformer (`models/video_transformer.py`), in and out:
diffusers' folders of `WanTransformer3DModel`, and single files with the original names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vdm_jax.models import layers
from vdm_jax.models.blocks.settings import TransformerSettings
from vdm_jax.models.video_transformer import VideoTransformer
from vdm_jax.weights import published
from vdm_jax.weights.latent_unet import understood

CLASS = "WanTransformer3DModel"
_ORIGINAL_HEAD = 128  # features of a head in all original files
# The values that a network is made of, with the published class's defaults.
_VALUES: Mapping[str, Any] = {
    "patch_size": [1, 2, 2],
    "num_attention_heads": 40,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 13_824,
    "num_layers": 40,
    "cross_attn_norm": True,
    "eps": 1e-6,
}
# Values that change what is computed, with the only one that is computed here. Those of an image
# are of networks that take one beside the text.
_FIXED: Mapping[str, Any] = {
    "qk_norm": "rms_norm_across_heads",
    "image_dim": None,
    "added_kv_proj_dim": None,
    "pos_embed_seq_len": None,
}
# Positions are computed, for sequences of any length.
_IGNORED = frozenset({"rope_max_seq_len"})


class Loaded(NamedTuple):
    """A network and its parameters as NumPy arrays."""

    network: VideoTransformer
    params: dict[str, Any]


def read_folder(folder: str | Path, dtype: DTypeLike = np.float32) -> Loaded:
    """The transformer in a folder; its parameters are kept, and it computes, in `dtype`.

    Raises FileNotFoundError; ValueError naming the value of config.json that is not understood, or
    the tensors that are missing, left over or of another shape.
    """
    network = read_config(folder)
    return _read(published.Tensors(folder, published.DIFFUSERS), network, dtype)


def read_file(file: str | Path, dtype: DTypeLike = np.float32) -> Loaded:
    """The transformer of a single .safetensors file with the original names, of any size.

    Raises as `read_folder`.
    """
    tensors = published.open_file(file)
    sizes = {_renamed(name): tensors.shape(name) for name in tensors.names()}
    for name in (PATCHES := "patch_embedding.weight", HIDDEN := "blocks.0.ffn.net.0.proj.bias"):
        if name not in sizes:
            raise ValueError(f"{file}: holds no transformer of Wan: it lacks {name}")
    width, channels, *patch = sizes[PATCHES]
    network = VideoTransformer(
        settings=TransformerSettings(
            heads=width // _ORIGINAL_HEAD, head_dim=_ORIGINAL_HEAD, hidden=sizes[HIDDEN][0]
        ),
        depth=len({name.split(".")[1] for name in sizes if name.startswith("blocks.")}),
        in_channels=channels,
        out_channels=sizes["proj_out.bias"][0] // int(np.prod(patch)),
        patch=tuple(patch),
        time_features=sizes["condition_embedder.time_embedder.linear_1.weight"][1],
        text_width=sizes["condition_embedder.text_embedder.linear_1.weight"][1],
    )
    return _read(tensors, network, dtype)


def _read(tensors: published.Tensors, network: VideoTransformer, dtype: DTypeLike) -> Loaded:
    params = published.read_params(
        tensors, shapes(network), name_function(network), dtype, renamed=_renamed
    )
    return Loaded(network.clone(dtype=np.dtype(dtype)), params)


def write_folder(
    folder: str | Path, network: VideoTransformer, params: PyTree, dtype: DTypeLike = np.float32
) -> None:
    """Writes the transformer as `read_folder` and diffusers read it, in `dtype`.

    Raises FileExistsError for a folder that holds a network; ValueError for one that diffusers'
    class cannot compute.
    """
    published.write_params(
        folder,
        params,
        name_function(network),
        config=config(network),
        stem=published.DIFFUSERS,
        dtype=dtype,
    )


def shapes(network: VideoTransformer) -> PyTree:
    """The shapes of a network's parameters, without their names. Nothing is computed."""
    z = jnp.zeros((1, *network.patch, network.in_channels))
    cond = {network.text: jnp.zeros((1, 1, network.text_width))} if network.text_width else {}
    cond |= {key: jnp.zeros(1, jnp.int32) for one in network.conditions for key in one.keys}
    return nn.meta.unbox(layers.abstract_params(network, z, jnp.zeros(1), cond))


# --- configurations -------------------------------------------------------------------------------


def read_config(folder: str | Path) -> VideoTransformer:
    """The network that a folder's config.json describes. Raises as `read_folder`."""
    path = Path(folder).expanduser() / "config.json"
    return from_config(published.read_json(path), path)


def from_config(found: Mapping[str, Any], path: Path) -> VideoTransformer:
    """The network that a config.json, read from `path`, describes. Raises ValueError."""
    values = understood(found, path, CLASS, _VALUES, _FIXED, _IGNORED)
    return VideoTransformer(
        settings=TransformerSettings(
            heads=values["num_attention_heads"],
            head_dim=values["attention_head_dim"],
            hidden=values["ffn_dim"],
            epsilon=values["eps"],
            text_norm=values["cross_attn_norm"],
        ),
        depth=values["num_layers"],
        in_channels=values["in_channels"],
        out_channels=values["out_channels"] or values["in_channels"],
        patch=tuple(values["patch_size"]),
        time_features=values["freq_dim"],
        text_width=values["text_dim"],
    )


def config(network: VideoTransformer) -> dict[str, Any]:
    """The config.json of a network. Raises ValueError if diffusers' class cannot compute it."""
    settings = network.settings
    if settings.qk_norm != "width" or not network.flow:
        raise ValueError(
            f"qk_norm = {settings.qk_norm!r}, flow = {network.flow}: {CLASS} has 'width' and True"
        )
    return {
        "_class_name": CLASS,
        "patch_size": list(network.patch),
        "num_attention_heads": settings.heads,
        "attention_head_dim": settings.head_dim,
        "in_channels": network.in_channels,
        "out_channels": network.out_channels,
        "text_dim": network.text_width,
        "freq_dim": network.time_features,
        "ffn_dim": settings.hidden,
        "num_layers": network.depth,
        "cross_attn_norm": settings.text_norm,
        "eps": settings.epsilon,
        **_FIXED,
    }


# --- names ----------------------------------------------------------------------------------------

_OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "time_embedding/linear_in": "condition_embedder.time_embedder.linear_1",
    "time_embedding/linear_out": "condition_embedder.time_embedder.linear_2",
    "time_embedding/modulation": "condition_embedder.time_proj",
    "text_embedding/linear_in": "condition_embedder.text_embedder.linear_1",
    "text_embedding/linear_out": "condition_embedder.text_embedder.linear_2",
    "output/linear": "proj_out",
}
IN_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "out": "to_out.0",
    "query_norm": "norm_q",
    "key_norm": "norm_k",
}
_IN_BLOCK = {
    **{f"attention_self/{ours}": f"attn1.{name}" for ours, name in IN_ATTENTION.items()},
    **{f"attention_text/{ours}": f"attn2.{name}" for ours, name in IN_ATTENTION.items()},
    "norm_text": "norm2",
    "mlp/linear_in": "ffn.net.0.proj",
    "mlp/linear_out": "ffn.net.2",
}
_MODULATION = "scale_shift_table"


def name_function(network: VideoTransformer) -> published.Name:
    """The function from the path of a parameter to its names in diffusers' files, one a block."""

    def name(path: str) -> str | list[str]:
        module, _, leaf = path.rpartition("/")
        kind = "bias" if leaf == "bias" else "weight"
        if module.startswith("blocks"):
            inner = module.removeprefix("blocks").lstrip("/")
            rest = f"{_IN_BLOCK[inner]}.{kind}" if inner else _MODULATION
            return [f"blocks.{number}.{rest}" for number in range(network.depth)]
        return _MODULATION if module == "output" else f"{_OUTSIDE[module]}.{kind}"

    return name


# The original names as regular expressions, and diffusers'. norm3, the one before attention to the
# text, is diffusers' norm2; norms 1 and 2, diffusers' 1 and 3, have no parameters.
_ORIGINAL = (
    (r"^model\.diffusion_model\.", ""),
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^head\.head\.", "proj_out."),
    (r"^head\.modulation$", _MODULATION),
    (r"^(blocks\.\d+)\.modulation$", rf"\1.{_MODULATION}"),
    (r"\.self_attn\.", ".attn1."),
    (r"\.cross_attn\.", ".attn2."),
    (r"\.(attn\d)\.([qkv])\.", r".\1.to_\2."),
    (r"\.(attn\d)\.o\.", r".\1.to_out.0."),
    (r"\.norm3\.", ".norm2."),
    (r"\.ffn\.0\.", ".ffn.net.0.proj."),
    (r"\.ffn\.2\.", ".ffn.net.2."),
)


def _renamed(found: str) -> str:
    """diffusers' name of a tensor in a file, which may be an original one."""
    for pattern, replacement in _ORIGINAL:
        found = re.sub(pattern, replacement, found)
    return found
