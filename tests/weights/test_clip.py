"""CLIP's networks compute what transformers' do, read its folders and write them.

The golden files are recorded by `record_clip.py`.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.weights import golden_files
from tests.weights.golden_files import assert_close, weighted
from vdm_jax.models.clip import CLIP
from vdm_jax.models.text import clip as text_clip
from vdm_jax.models.text.clip import CLIPTextEncoder
from vdm_jax.models.vision import clip as vision_clip
from vdm_jax.models.vision.clip import CLIPVisionEncoder
from vdm_jax.weights import clip

NAMES = ("text", "text_projection", "vision", "vision_gelu", "whole")


def load(tmp_path, name):
    golden = golden_files.read(f"clip_{name}")
    return clip.read_folder(golden_files.write_folder(tmp_path / name, golden)), golden.values


def channels_last(images):
    return images.transpose(0, 2, 3, 1)


@pytest.mark.parametrize("name", ["text", "text_projection"])
def test_text_encoder_equals_the_original(tmp_path, name):
    (network, params), values = load(tmp_path, name)
    penultimate = network.clone(skip=1)
    tokens = jnp.asarray(values["tokens"], jnp.int32)

    @jax.jit
    def run(params):
        def loss(table):
            changed = {**params, "words": {"embedding": table}}
            of_states = network if name == "text" else penultimate
            states, pooled = of_states.apply({"params": changed}, tokens, method="encode")
            return weighted(states, pooled), (states, pooled)

        table = params["words"]["embedding"]
        gradient, (kept, pooled) = jax.grad(loss, has_aux=True)(table)
        return gradient, kept, pooled, network.apply({"params": params}, tokens)

    gradient, kept, pooled, states = run(params)
    assert_close(states, values["states"])
    assert_close(kept, values["states" if name == "text" else "penultimate"])
    assert_close(pooled, values["pooled"])
    assert_close(gradient, values["gradient/words"], within=1e-3)


def test_text_masks_are_those_of_the_original(tmp_path):
    (network, params), values = load(tmp_path, "text_projection")
    tokens, mask = jnp.asarray(values["tokens"], jnp.int32), values["mask"]
    found = jax.jit(network.apply)({"params": params}, tokens, jnp.asarray(mask))
    assert_close(found[mask], values["masked"][mask])
    assert np.abs(found - values["states"])[mask].max() > 0.1  # the mask matters


@pytest.mark.parametrize("name", ["vision", "vision_gelu"])
def test_image_encoder_equals_the_original(tmp_path, name):
    (network, params), values = load(tmp_path, name)

    @jax.jit
    def run(params, images):
        def loss(images):
            encoded = network.apply({"params": params}, images)
            return weighted(*encoded), encoded

        return jax.grad(loss, has_aux=True)(images)

    gradient, (states, pooled) = run(params, channels_last(values["images"]))
    assert_close(states, values["states"])
    assert_close(pooled, values["pooled"])
    assert_close(gradient, channels_last(values["gradient/images"]), within=1e-3)
    with pytest.raises(ValueError, match=r"images have shape \(28, 28, 3\): must be \(30, 30, 3\)"):
        network.apply({"params": params}, jnp.zeros((1, 28, 28, 3)))


@pytest.mark.parametrize("name", ["text_projection", "vision"])
def test_half_precision_is_close(tmp_path, name):
    golden = golden_files.read(f"clip_{name}")
    folder = golden_files.write_folder(tmp_path / name, golden)
    network, params = clip.read_folder(folder, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.bfloat16)}
    values = golden.values
    inputs = (
        channels_last(values["images"]) if name == "vision" else values["tokens"].astype(np.int32)
    )
    method = "__call__" if name == "vision" else "encode"
    run = jax.jit(lambda params, x: network.apply({"params": params}, x, method=method))
    for found, expected in zip(
        run(params, inputs), (values["states"], values["pooled"]), strict=True
    ):
        assert found.dtype == jnp.bfloat16
        off = found.astype(np.float32) - expected
        assert np.sqrt((off**2).mean()) < 0.05 * np.sqrt((expected**2).mean())


def test_whole_clip_equals_the_original(tmp_path):
    (network, params), values = load(tmp_path, "whole")
    images, tokens = channels_last(values["images"]), jnp.asarray(values["tokens"], jnp.int32)
    found = jax.jit(network.apply)({"params": params}, tokens, images)
    assert_close(found, values["logits"])
    # A part is an encoder by itself.
    text = CLIPTextEncoder(network.text)
    pooled = jax.jit(lambda p: text.apply({"params": p}, tokens, method="encode").pooled)
    unit = np.asarray(pooled(params["text"]))
    assert_close(unit / np.linalg.norm(unit, axis=-1, keepdims=True), values["text"])


@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_equals_what_was_read(tmp_path, name):
    golden = golden_files.read(f"clip_{name}")
    network, params = clip.read_folder(golden_files.write_folder(tmp_path / "original", golden))
    clip.write_folder(tmp_path / "copy", network, params)
    written = safetensors.numpy.load_file(tmp_path / "copy" / "model.safetensors")
    expected = {k: v for k, v in golden.weights.items() if not k.endswith("position_ids")}
    assert written.keys() == expected.keys()
    for key, tensor in expected.items():
        assert written[key].dtype == tensor.dtype
        np.testing.assert_array_equal(written[key], tensor, key)
    assert clip.read_config(tmp_path / "copy") == network
    config = json.loads((tmp_path / "copy" / "config.json").read_text())
    assert config["architectures"] == golden.config["architectures"]
    # Half precision rounds once and is kept.
    clip.write_folder(tmp_path / "half", network, params, np.float16)
    half = clip.read_folder(tmp_path / "half", np.float16)
    rounded = jax.tree.map(lambda leaf: leaf.astype(np.float16), params)
    jax.tree.map(np.testing.assert_array_equal, half.params, rounded)


def test_names_without_the_prefix_are_read_too(tmp_path):
    golden = golden_files.read("clip_text")
    bare = {key.removeprefix("text_model."): value for key, value in golden.weights.items()}
    bare.pop("embeddings.position_ids")
    one = clip.read_folder(golden_files.write_folder(tmp_path / "one", golden))
    other = clip.read_folder(
        golden_files.write_folder(tmp_path / "other", golden._replace(weights=bare))
    )
    assert one.network == other.network
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)


@pytest.mark.parametrize(
    "network,parameters,tensors",
    [
        (CLIPTextEncoder(text_clip.SIZES["l"]), 123_060_480, 196),
        (CLIPTextEncoder(text_clip.SIZES["h"]), 340_387_840, 372),
        (CLIPVisionEncoder(vision_clip.SIZES["l"]), 303_966_208, 392),
        (CLIPVisionEncoder(vision_clip.SIZES["h"]), 632_076_800, 520),
    ],
    ids=["text l", "text h", "vision l", "vision h"],
)
def test_sizes_are_the_published_ones(network, parameters, tensors):
    """The numbers are those of transformers' classes on the meta device."""
    shapes = clip.shapes(network)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters
    flat = jax.tree_util.tree_flatten_with_path(shapes)[0]
    names = [
        clip.name(network, jax.tree_util.keystr(p, simple=True, separator="/")) for p, _ in flat
    ]
    flattened = [n for part in names for n in ([part] if isinstance(part, str) else part)]
    assert len(set(flattened)) == len(flattened) == tensors


def test_published_sizes_are_read_from_published_configurations(tmp_path):
    """The values of Stable Diffusion 1.5's and 2.1's text_encoder/config.json, and of SVD's
    image_encoder/config.json."""
    stack = {"attention_dropout": 0.0, "dropout": 0.0, "initializer_factor": 1.0}
    one = {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
        "hidden_act": "quick_gelu",
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_attention_heads": 12,
        "num_hidden_layers": 12,
        "vocab_size": 49408,
        **stack,
    }
    two = {
        **one,
        "hidden_act": "gelu",
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
        "projection_dim": 512,
    }
    image = {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_act": "gelu",
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 16,
        "num_hidden_layers": 32,
        "patch_size": 14,
        "projection_dim": 1024,
        "num_channels": 3,
        **stack,
    }
    for config, network in (
        (one, CLIPTextEncoder(text_clip.SIZES["l"])),
        (two, CLIPTextEncoder(text_clip.SIZES["h"])),
        (image, CLIPVisionEncoder(vision_clip.SIZES["h"])),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config))
        assert clip.read_config(tmp_path) == network


def test_older_configurations_of_a_whole_clip(tmp_path):
    """What NAME_config leaves out has its default, and NAME_config_dict stands above it."""
    config = {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": 768,
        "text_config": {"hidden_size": 512, "max_length": 20, "pruned_heads": {}},
        "text_config_dict": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
        },
        "vision_config": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_attention_heads": 16,
            "num_hidden_layers": 24,
            "patch_size": 14,
        },
        "vision_config_dict": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    network = clip.read_config(tmp_path)
    assert isinstance(network, CLIP)
    assert network.text.transformer == text_clip.SIZES["l"].transformer
    assert network.text.projection == 768
    assert network.vision == vision_clip.SIZES["l"]


def test_wrong_files_are_named(tmp_path):
    golden = golden_files.read("clip_vision")
    folder = tmp_path / "vision"
    name = "vision_model.encoder.layers.1.mlp.fc2.weight"
    for change, message in (
        ({"architectures": ["SiglipModel"]}, r"architectures = \['SiglipModel'\]: allowed are"),
        ({"model_type": "siglip"}, "model_type = 'siglip': allowed are"),
        ({"hidden_act": "relu"}, "hidden_act = 'relu': allowed are quick_gelu, gelu"),
        ({"num_channels": 4}, "num_channels = 4: allowed is 3"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads = .*: allowed is {}"),
        ({"use_rope": True}, "use_rope = True is not understood"),
        ({"num_attention_heads": 5}, "heads = 5: must divide width = 24"),
        ({"intermediate_size": 50}, r"mlp\.fc1\.(bias|weight) has shape"),
        ({"num_hidden_layers": 1}, r"has no vision_model\.encoder\.layers\.1\."),
        ({"num_hidden_layers": 3}, r"lacks the tensor vision_model\.encoder\.layers\.2\."),
        ({"architectures": ["CLIPVisionModel"]}, r"has no visual_projection\.weight"),
    ):
        with pytest.raises(ValueError, match=message):
            clip.read_folder(golden_files.write_folder(folder, golden, **change))
    lacking = {key: value for key, value in golden.weights.items() if key != name}
    with pytest.raises(ValueError, match=f"lacks the tensor {name}"):
        clip.read_folder(golden_files.write_folder(folder, golden._replace(weights=lacking)))
    whole = golden_files.read("clip_whole")
    part = {**whole.config["text_config"], "hidden_act": "relu"}
    with pytest.raises(ValueError, match=r"text_config\.hidden_act = 'relu'"):
        clip.read_config(golden_files.write_folder(tmp_path / "whole", whole, text_config=part))


def test_wrong_settings_are_named():
    network = CLIPTextEncoder(text_clip.SIZES["l"])
    with pytest.raises(ValueError, match="78 tokens: at most 77 are allowed"):
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 78), jnp.int32))
    with pytest.raises(ValueError, match="skip = 12: must be from 0 to 11"):
        network = network.clone(skip=12)
        jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, 7), jnp.int32))
