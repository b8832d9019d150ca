"""The weights of CLIP's encoders (`models/text/clip.py`, `models/vision/clip.py`), in and out of
folders as they are published: config.json and safetensors files of the classes CLIPTextModel,
CLIPTextModelWithProjection, CLIPVisionModel, CLIPVisionModelWithProjection and CLIPModel."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vdm_jax.models import layers
from vdm_jax.models.blocks.encoder import ACTIVATIONS, Transformer
from vdm_jax.models.clip import CLIP
from vdm_jax.models.text.clip import OLD_EOS, CLIPTextConfig, CLIPTextEncoder
from vdm_jax.models.vision.clip import CLIPVisionConfig, CLIPVisionEncoder
from vdm_jax.weights import lora, published

Network = CLIPTextEncoder | CLIPVisionEncoder | CLIP

# What a configuration means where it says nothing.
_STACK = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
_TEXT = _STACK | {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "vocab_size": 49_408,
    "max_position_embeddings": 77,
    "eos_token_id": 49_407,
    "projection_dim": 512,
}
_VISION = _STACK | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "num_channels": 3,
    "projection_dim": 512,
}
# Understood where they have this value only.
_FIXED = {"add_cross_attention": False, "is_decoder": False, "pruned_heads": {}}

_IN_LAYER = {
    "attention_norm": "layer_norm1",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.out_proj",
    "mlp_norm": "layer_norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
_OUTSIDE = {
    "text": {
        "words": "text_model.embeddings.token_embedding",
        "positions": "text_model.embeddings.position_embedding",
        "norm": "text_model.final_layer_norm",
        "projection": "text_projection",
    },
    "vision": {
        "patches": "vision_model.embeddings.patch_embedding",
        "positions": "vision_model.embeddings.position_embedding",
        "pre_norm": "vision_model.pre_layrnorm",  # published so
        "norm": "vision_model.post_layernorm",
        "projection": "visual_projection",
    },
}


class Loaded(NamedTuple):
    """A network and its parameters as NumPy arrays."""

    network: Network
    params: dict[str, Any]


def read_config(folder: str | Path, dtype: DTypeLike = jnp.float32) -> Network:
    """The network, computing in `dtype`, that a folder's config.json describes.

    Raises FileNotFoundError; ValueError naming a class or a value that is not understood.
    """
    path = Path(folder).expanduser() / "config.json"
    config = published.read_json(path)
    classes = published.config_value(config, path, "architectures") or [None]
    kind, *_ = classes
    if kind == "CLIPModel":
        published.config_value(config, path, "model_type", ["clip"])
        parts = {"text_config", "text_config_dict", "vision_config", "vision_config_dict"}
        _check(config, path, "", known={*parts, "projection_dim"})
        projection = config.get("projection_dim", 512)
        text, vision = (_part(config, path, name) for name in ("text", "vision"))
        return CLIP(
            _text(text, path, "text_config.", projection),
            _vision(vision, path, "vision_config.", projection),
            dtype,
        )
    if kind in ("CLIPTextModel", "CLIPTextModelWithProjection"):
        published.config_value(config, path, "model_type", ["clip_text_model"])
        projection = config.get("projection_dim", _TEXT["projection_dim"])
        projection = projection if kind.endswith("Projection") else 0
        return CLIPTextEncoder(_text(config, path, "", projection), dtype)
    if kind in ("CLIPVisionModel", "CLIPVisionModelWithProjection"):
        published.config_value(config, path, "model_type", ["clip_vision_model"])
        projection = config.get("projection_dim", _VISION["projection_dim"])
        projection = projection if kind.endswith("Projection") else 0
        return CLIPVisionEncoder(_vision(config, path, "", projection), dtype)
    raise ValueError(
        f"{path}: architectures = {classes}: allowed are CLIPTextModel, CLIPVisionModel, both also "
        "with the ending WithProjection, and CLIPModel"
    )


def _part(config: Mapping[str, Any], path: Path, name: str) -> dict[str, Any]:
    """The configuration of one encoder in that of a CLIPModel, in which the older
    NAME_config_dict stands above NAME_config."""
    part = published.config_value(config, path, f"{name}_config")
    return {**part, **(config.get(f"{name}_config_dict") or {})}


def _check(config: Mapping[str, Any], path: Path, where: str, known: set[str]) -> None:
    for key, value in config.items():
        if key in _FIXED and value != _FIXED[key]:
            raise ValueError(f"{path}: {where}{key} = {value!r}: allowed is {_FIXED[key]!r}")
        if key not in known | published.IGNORED | _FIXED.keys():
            raise ValueError(f"{path}: {where}{key} = {value!r} is not understood")


def _text(config: Mapping[str, Any], path: Path, where: str, projection: int) -> CLIPTextConfig:
    _check(config, path, where, set(_TEXT))
    values = _TEXT | config
    is_old = (values["eos_token_id"], values["vocab_size"]) == (OLD_EOS, _TEXT["vocab_size"])
    return CLIPTextConfig(
        transformer=_transformer(values, path, where),
        vocab_size=values["vocab_size"],
        max_positions=values["max_position_embeddings"],
        # In the published vocabulary the old number, 2, means the end's too, which is its last.
        eos=_TEXT["eos_token_id"] if is_old else values["eos_token_id"],
        projection=projection,
    )


def _vision(config: Mapping[str, Any], path: Path, where: str, projection: int) -> CLIPVisionConfig:
    _check(config, path, where, set(_VISION))
    values = _VISION | config
    if values["num_channels"] != 3:
        raise ValueError(f"{path}: {where}num_channels = {values['num_channels']}: allowed is 3")
    return CLIPVisionConfig(
        transformer=_transformer(values, path, where),
        image_size=values["image_size"],
        patch_size=values["patch_size"],
        projection=projection,
    )


def _transformer(values: Mapping[str, Any], path: Path, where: str) -> Transformer:
    if values["hidden_act"] not in ACTIVATIONS:
        raise ValueError(
            f"{path}: {where}hidden_act = {values['hidden_act']!r}: allowed are "
            f"{', '.join(ACTIVATIONS)}"
        )
    return Transformer(
        width=values["hidden_size"],
        hidden=values["intermediate_size"],
        num_layers=values["num_hidden_layers"],
        heads=values["num_attention_heads"],
        activation=values["hidden_act"],
        epsilon=values["layer_norm_eps"],
    )


def shapes(network: Network) -> PyTree:
    """The shapes of the network's parameters. Nothing is computed."""
    return nn.meta.unbox(abstract_params(network))


def abstract_params(network: Network) -> PyTree:
    """For each parameter a `layers.Named` of its shape. Nothing is computed."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    if isinstance(network, CLIPTextEncoder):
        inputs = (tokens,)
    else:
        config = network.vision if isinstance(network, CLIP) else network.config
        images = jnp.zeros((1, config.image_size, config.image_size, 3))
        inputs = (tokens, images) if isinstance(network, CLIP) else (images,)
    return layers.abstract_params(network, *inputs)


def name(network: Network, path: str) -> str | list[str]:
    """The published name of a parameter; of one in the stacked layers, those of all layers."""
    if path == "logit_scale":
        return path
    if isinstance(network, CLIP):
        part, path = path.split("/", 1)
    else:
        part = "text" if isinstance(network, CLIPTextEncoder) else "vision"
    if path == "class_token":
        return "vision_model.embeddings.class_embedding"
    *stack, module, leaf = path.split("/")
    ending = "bias" if leaf == "bias" else "weight"
    if not stack:
        return f"{_OUTSIDE[part][module]}.{ending}"
    config = getattr(network, part) if isinstance(network, CLIP) else network.config
    numbers = range(config.transformer.num_layers)
    layer = f"{part}_model.encoder.layers"
    return [f"{layer}.{number}.{_IN_LAYER[module]}.{ending}" for number in numbers]


def read_folder(folder: str | Path, dtype: DTypeLike = np.float32) -> Loaded:
    """A text encoder, an image encoder or a whole CLIP; parameters are kept, and it computes, in
    `dtype`.

    Raises FileNotFoundError; ValueError naming the file, and the value, or the tensor, that is not
    understood, missing, of no use or of another shape than config.json says.
    """
    network = read_config(folder, dtype)
    params = published.read_params(
        published.Tensors(folder),
        shapes(network),
        functools.partial(name, network),
        dtype,
        renamed=functools.partial(_renamed, network),
        unused=lambda found: found.endswith("embeddings.position_ids"),
    )
    return Loaded(network, params)


def with_loras(
    network: CLIPTextEncoder, params: PyTree, loras: Sequence[tuple[str | Path, float]]
) -> PyTree:
    """The parameters of a text encoder, NumPy arrays, with what LoRA files have for it added.

    loras: files and their scales. Raises as `lora.read` and `lora.changes`.
    """
    read = [(lora.read(file), scale) for file, scale in loras]
    names = functools.partial(name, network)
    return lora.added(params, lora.changes(read, lora.TEXT, params, names))


def _renamed(network: Network, found: str) -> str:
    """Version 5 of transformers writes a text encoder by itself without its prefix."""
    if isinstance(network, CLIP) or found.startswith(("text_", "vision_model.", "visual_")):
        return found
    return ("text_model." if isinstance(network, CLIPTextEncoder) else "vision_model.") + found


def write_folder(
    folder: str | Path, network: Network, params: PyTree, dtype: DTypeLike = np.float32
) -> None:
    """Writes config.json and safetensors files, which transformers loads. The inverse of
    `read_folder`."""
    partial = functools.partial(name, network)
    published.write_params(folder, params, partial, config=_published(network), dtype=dtype)


def _published(network: Network) -> dict[str, Any]:
    """The config.json of a network."""
    if isinstance(network, CLIP):
        return {
            "architectures": ["CLIPModel"],
            "model_type": "clip",
            "projection_dim": network.text.projection,
            "text_config": _published_text(network.text),
            "vision_config": _published_vision(network.vision),
        }
    is_text, config = isinstance(network, CLIPTextEncoder), network.config
    kind = ("CLIPTextModel" if is_text else "CLIPVisionModel") + (
        "WithProjection" if config.projection else ""
    )
    make = _published_text if is_text else _published_vision
    return {"architectures": [kind], **make(config)}


def _published_text(config: CLIPTextConfig) -> dict[str, Any]:
    return {
        "model_type": "clip_text_model",
        **_published_transformer(config.transformer),
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.max_positions,
        "eos_token_id": config.eos,
        **({"projection_dim": config.projection} if config.projection else {}),
    }


def _published_vision(config: CLIPVisionConfig) -> dict[str, Any]:
    return {
        "model_type": "clip_vision_model",
        **_published_transformer(config.transformer),
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        **({"projection_dim": config.projection} if config.projection else {}),
    }


def _published_transformer(sizes: Transformer) -> dict[str, Any]:
    return {
        "hidden_size": sizes.width,
        "intermediate_size": sizes.hidden,
        "num_hidden_layers": sizes.num_layers,
        "num_attention_heads": sizes.heads,
        "hidden_act": sizes.activation,
        "layer_norm_eps": sizes.epsilon,
    }
