"""The weights of Depth Anything (`models/vision/depth_anything.py`), versions 1 and 2, from folders
as they are published: config.json, preprocessor_config.json and safetensors files of the class
DepthAnythingForDepthEstimation."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vdm_jax.models import layers
from vdm_jax.models.blocks.encoder import Transformer
from vdm_jax.models.vision.depth_anything import DepthAnything, DepthAnythingConfig, DepthImages
from vdm_jax.weights import published

CLASS = "DepthAnythingForDepthEstimation"
# What a configuration means where it says nothing.
_DEFAULTS = {
    "patch_size": 14,
    "reassemble_factors": [4, 2, 1, 0.5],
    "neck_hidden_sizes": [48, 96, 192, 384],
    "fusion_hidden_size": 64,
    "head_hidden_size": 32,
    "depth_estimation_type": "relative",
    "max_depth": 1,
}
_BACKBONE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "mlp_ratio": 4,
    "layer_norm_eps": 1e-6,
    "image_size": 224,
    "patch_size": 14,
}
# Understood where they have this value only.
_FIXED = {
    "backbone": None,
    "backbone_kwargs": None,
    "head_in_index": -1,
    "use_pretrained_backbone": False,
    "use_timm_backbone": False,
}
_BACKBONE_FIXED = {
    "apply_layernorm": True,
    "hidden_act": "gelu",
    "num_channels": 3,
    "qkv_bias": True,
    "reshape_hidden_states": False,
    "use_swiglu_ffn": False,
}
# Settings of training, and one that out_indices gives too.
_BACKBONE_IGNORED = {
    *("attention_probs_dropout_prob", "drop_path_rate", "hidden_dropout_prob", "layerscale_value"),
    *("out_features", "stage_names", "use_mask_token"),
}
_IN_LAYER = {
    "attention_norm": "norm1",
    "query": "attention.attention.query",
    "key": "attention.attention.key",
    "value": "attention.attention.value",
    "out": "attention.output.dense",
    "mlp_norm": "norm2",
    "mlp_in": "mlp.fc1",
    "mlp_out": "mlp.fc2",
}
# The map that a residual branch ends in, and the scale of the branch.
_SCALES = {"out": "layer_scale1.lambda1", "mlp_out": "layer_scale2.lambda1"}
_HEAD = {"head_in": "conv1", "head_middle": "conv2", "head_out": "conv3"}
_ENDS = {"in": "convolution1", "out": "convolution2"}


class Loaded(NamedTuple):
    """An estimator, what it is given of an image, and its parameters as NumPy arrays."""

    network: DepthAnything
    prepare: DepthImages
    params: dict[str, Any]


def read_folder(folder: str | Path, dtype: DTypeLike = np.float32) -> Loaded:
    """The estimator in a folder. Its parameters are kept, and it computes, in `dtype`.

    Raises FileNotFoundError; ValueError naming the file, and the value, or the tensor, that is not
    understood, missing, of no use or of another shape than config.json says.
    """
    network = read_config(folder, dtype)
    tensors = published.Tensors(folder)
    # Tensors of DINOv2's training, of the coarsest level, which adds no coarser one, and those
    # that are read below.
    unused = ("embeddings.mask_token", "fusion_stage.layers.0.residual_layer1", ".lambda1")
    params = published.read_params(
        tensors,
        shapes(network),
        functools.partial(name, network),
        dtype,
        unused=lambda found: any(part in found for part in unused),
    )
    return Loaded(network, read_preprocessing(folder), _scaled(network, tensors, params))


def _scaled(
    network: DepthAnything, tensors: published.Tensors, params: dict[str, Any]
) -> dict[str, Any]:
    """The parameters with the scales of DINOv2's residual branches in the maps that these end in.
    Raises ValueError for a scale that is missing or has another shape."""
    width = network.config.transformer.width
    for part, numbers in _parts(network.config).items():
        for module, scale in _SCALES.items():
            names = [f"backbone.encoder.layer.{number}.{scale}" for number in numbers]
            for found in names:
                if tensors.shape(found) != (width,):
                    raise ValueError(
                        f"{tensors.folder}: {found} has shape {tensors.shape(found)}, config.json "
                        f"asks for {(width,)}"
                    )
            factors = np.stack([tensors.whole(found) for found in names])
            leaves = params["backbone"][part]["layers"][module]
            for leaf, value in leaves.items():
                shape = (len(factors), *[1] * (value.ndim - 2), width)
                leaves[leaf] = (value * factors.reshape(shape)).astype(value.dtype)
    return params


def _parts(config: DepthAnythingConfig) -> dict[str, range]:
    """The numbers of the layers in each part of the encoder."""
    begins = (0, *config.taps)
    return {f"part_{i}": range(begins[i], tap) for i, tap in enumerate(config.taps)}


def read_config(folder: str | Path, dtype: DTypeLike = jnp.float32) -> DepthAnything:
    """The network, computing in `dtype`, that a folder's config.json describes.

    Raises FileNotFoundError; ValueError naming a class or a value that is not understood.
    """
    path = Path(folder).expanduser() / "config.json"
    config = published.read_json(path)
    kinds = published.config_value(config, path, "architectures") or [None]
    if kinds != [CLASS]:
        raise ValueError(f"{path}: architectures = {kinds}: allowed is {CLASS}")
    backbone = published.config_value(config, path, "backbone_config")
    values = _understood(
        config,
        path,
        "",
        _DEFAULTS,
        {**_FIXED, "reassemble_hidden_size": backbone.get("hidden_size", 768)},
        {"backbone_config"},
    )
    published.config_value(backbone, path, "model_type", ["dinov2"])
    sizes = _understood(
        backbone,
        path,
        "backbone_config.",
        _BACKBONE,
        _BACKBONE_FIXED,
        {"out_indices", *_BACKBONE_IGNORED},
    )
    taps = tuple(published.config_value(backbone, path, "out_indices"))
    layers = sizes["num_hidden_layers"]
    if list(taps) != sorted(set(taps)) or taps[0] < 1 or taps[-1] != layers:
        raise ValueError(
            f"{path}: backbone_config.out_indices = {taps}: must rise from at least 1 to {layers}, "
            "the number of layers"
        )
    kind = values["depth_estimation_type"]
    if kind not in ("relative", "metric"):
        raise ValueError(f"{path}: depth_estimation_type = {kind!r}: allowed are relative, metric")
    if values["patch_size"] != sizes["patch_size"]:
        raise ValueError(
            f"{path}: patch_size = {values['patch_size']}: backbone_config has "
            f"{sizes['patch_size']}"
        )
    if not len(taps) == len(values["neck_hidden_sizes"]) == len(values["reassemble_factors"]):
        raise ValueError(
            f"{path}: neck_hidden_sizes, reassemble_factors and backbone_config.out_indices must "
            "be equally long"
        )
    width = sizes["hidden_size"]
    return DepthAnything(
        DepthAnythingConfig(
            transformer=Transformer(
                width=width,
                hidden=int(width * sizes["mlp_ratio"]),
                num_layers=layers,
                heads=sizes["num_attention_heads"],
                activation="gelu",
                epsilon=sizes["layer_norm_eps"],
            ),
            taps=taps,
            image_size=sizes["image_size"],
            patch_size=sizes["patch_size"],
            neck_widths=tuple(values["neck_hidden_sizes"]),
            factors=tuple(map(float, values["reassemble_factors"])),
            fusion_width=values["fusion_hidden_size"],
            head_width=values["head_hidden_size"],
            max_depth=float(values["max_depth"]) if kind == "metric" else 0.0,
        ),
        dtype,
    )


def _understood(
    config: Mapping[str, Any],
    path: Path,
    where: str,
    defaults: Mapping[str, Any],
    fixed: Mapping[str, Any],
    others: set[str],
) -> dict[str, Any]:
    """The values of a configuration, with defaults. Raises ValueError naming one that is not
    understood."""
    for key, value in config.items():
        if key in fixed and value not in (fixed[key], None):
            raise ValueError(f"{path}: {where}{key} = {value!r}: allowed is {fixed[key]!r}")
        if key not in defaults.keys() | fixed.keys() | others | published.IGNORED:
            raise ValueError(f"{path}: {where}{key} = {value!r} is not understood")
    given = {key: value for key, value in config.items() if value is not None}
    return {key: given.get(key, value) for key, value in defaults.items()}


def shapes(network: DepthAnything) -> PyTree:
    """The shapes of the network's parameters. Nothing is computed."""
    return nn.meta.unbox(abstract_params(network))


def abstract_params(network: DepthAnything) -> PyTree:
    """For each parameter a `layers.Named` of its shape. Nothing is computed."""
    side = 2 * network.config.patch_size
    images = jnp.zeros((1, side, side, 3))
    return layers.abstract_params(network, images)


def name(network: DepthAnything, path: str) -> published.Named | list[published.Named]:
    """The published name of a parameter; of one in the stacked layers, those of its layers."""
    top, *inner, leaf = path.split("/")
    kind = "bias" if leaf.endswith("bias") else "weight"
    if top == "backbone":
        return _backbone_name(network.config, inner, leaf, kind)
    if top in _HEAD:
        ones = 2 * (top == "head_out" and leaf == "kernel")
        return published.Place(f"head.{_HEAD[top]}.{kind}", ones=ones)
    part, number = top.rsplit("_", 1)
    if part == "neck":
        return f"neck.convs.{number}.{kind}"
    ones = 2 * (inner == ["project"] and leaf == "kernel")
    if part == "reassemble":
        module = "projection" if inner == ["project"] else "resize"
        return published.Place(f"neck.reassemble_stage.layers.{number}.{module}.{kind}", ones=ones)
    # The published layers begin with the coarsest.
    layer = f"neck.fusion_stage.layers.{len(network.config.taps) - 1 - int(number)}"
    if inner == ["project"]:
        return published.Place(f"{layer}.projection.{kind}", ones=ones)
    residual, end = inner[0].split("_")
    return f"{layer}.residual_layer{1 if residual == 'level' else 2}.{_ENDS[end]}.{kind}"


def _backbone_name(
    config: DepthAnythingConfig, inner: list[str], leaf: str, kind: str
) -> published.Named | list[published.Named]:
    if not inner:
        table = {"class_token": "cls_token", "positions": "position_embeddings"}
        return f"backbone.embeddings.{table[leaf]}"
    if inner == ["patches"]:
        return f"backbone.embeddings.patch_embeddings.projection.{kind}"
    if inner == ["norm"]:
        return f"backbone.layernorm.{kind}"
    part, _, module = inner
    numbers = _parts(config)[part]
    return [f"backbone.encoder.layer.{number}.{_IN_LAYER[module]}.{kind}" for number in numbers]


_IMAGES_FIXED = {
    "do_normalize": True,
    "do_pad": False,
    "do_rescale": True,
    "do_resize": True,
    "resample": 3,  # bicubic
    "rescale_factor": 1 / 255,
    "size_divisor": None,
}
_IMAGES_IGNORED = {
    *("_processor_class", "_valid_processor_keys", "do_reduce_labels", "feature_extractor_type"),
    *("image_processor_type", "processor_class"),
}


def read_preprocessing(folder: str | Path) -> DepthImages:
    """What a folder's preprocessor_config.json says that the network is given of an image.

    Raises FileNotFoundError; ValueError naming a value that is not understood.
    """
    path = Path(folder).expanduser() / "preprocessor_config.json"
    config = published.read_json(path)
    known = {"size", "ensure_multiple_of", "keep_aspect_ratio", "image_mean", "image_std"}
    for key, value in config.items():
        if key in _IMAGES_FIXED and value not in (_IMAGES_FIXED[key], None):
            raise ValueError(f"{path}: {key} = {value!r}: allowed is {_IMAGES_FIXED[key]!r}")
        if key not in known | _IMAGES_FIXED.keys() | _IMAGES_IGNORED:
            raise ValueError(f"{path}: {key} = {value!r} is not understood")
    size, standard = published.config_value(config, path, "size"), DepthImages()
    if not isinstance(size, dict) or {"height", "width"} - size.keys():
        raise ValueError(f"{path}: size = {size!r}: must have height and width")
    return DepthImages(
        size=(size["height"], size["width"]),
        keep_ratio=bool(config.get("keep_aspect_ratio", False)),
        multiple=int(config.get("ensure_multiple_of", 1)),
        mean=tuple(config.get("image_mean", standard.mean)),
        deviation=tuple(config.get("image_std", standard.deviation)),
    )
