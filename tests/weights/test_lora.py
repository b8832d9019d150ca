"""LoRA files in every layout, merged into networks by the formula and as diffusers merges them."""

import functools
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from tests.systems.test_latent_image import write_folder
from tests.weights import drawn_weights
from vdm_jax.weights import clip, fetch, latent_unet, lora, published

GOLDEN = Path(__file__).parent / "golden" / "lora.safetensors"
SCALE, EVERY, ALPHA = 0.7, 7, 3.0  # as recorded
BLOCK = "down_blocks.0.attentions.0"
TO_OUT = f"{BLOCK}.transformer_blocks.0.attn1.to_out.0"
TO_Q = f"{BLOCK}.transformer_blocks.0.attn1.to_q"
Q_PROJ = "text_model.encoder.layers.1.self_attn.q_proj"
# Layers of every kind with the shapes of their weights: heads and back, a gated map, convolutions
# of 1 x 1 and 3 x 3.
UNET = {
    TO_Q: (8, 8),
    TO_OUT: (8, 8),
    f"{BLOCK}.transformer_blocks.0.ff.net.0.proj": (64, 8),
    f"{BLOCK}.proj_in": (8, 8, 1, 1),
    "down_blocks.0.downsamplers.0.conv": (8, 8, 3, 3),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        yield write_folder(folder / "model")


@pytest.fixture(scope="module")
def unet(folder):
    return latent_unet.read_folder(folder / "unet")


@pytest.fixture(scope="module")
def text(folder):
    return clip.read_folder(folder / "text_encoder")


@pytest.fixture(scope="module")
def add_to_unet(unet):
    """A function from files and scales to the U-Net's weights, as published."""
    names = latent_unet.name_function(unet.network)

    def add(files):
        read = [(lora.read(file), scale) for file, scale in files.items()]
        params = lora.added(unet.params, lora.changes(read, lora.UNET, unet.params, names))
        return as_published(params, names)

    return add


@pytest.fixture(scope="module")
def add_to_text(text):
    names = functools.partial(clip.name, text.network)
    return lambda files: as_published(
        clip.with_loras(text.network, text.params, list(files.items())), names
    )


def as_published(params, names):
    return dict(published._published(params, names, np.dtype(np.float32)))


def factors(shape, rank=2, seed=0):
    """A and B of a weight."""
    rng, (outputs, inputs, *kernel) = np.random.default_rng(seed), shape
    return (
        rng.normal(size=(rank, inputs, *kernel)).astype(np.float32),
        rng.normal(size=(outputs, rank, *[1] * len(kernel))).astype(np.float32),
    )


def product(down, up):
    """B A of a linear map, or of a convolution followed by one of 1 x 1."""
    return np.einsum("or...,ri...->oi...", up.astype(np.float64), down.astype(np.float64))


DIFFUSERS = ("{}.lora_A.weight", "{}.lora_B.weight")
OLDER = ("{}.lora.down.weight", "{}.lora.up.weight")
OLDEST = ("{}.lora_linear_layer.down.weight", "{}.lora_linear_layer.up.weight")
OLD_ATTENTION = ("{}_lora.down.weight", "{}_lora.up.weight")
KOHYA = ("{}.lora_down.weight", "{}.lora_up.weight")


def write(path, layers, forms, name, alpha=None, **metadata):
    """A file of factors. name: of a layer in the file."""
    tensors = {}
    for seed, (layer, shape) in enumerate(layers.items()):
        for form, tensor in zip(forms, factors(shape, seed=seed), strict=True):
            tensors[form.format(name(layer))] = tensor
        if alpha is not None:
            tensors[f"{name(layer)}.alpha"] = np.array(alpha, np.float32)
    safetensors.numpy.save_file(tensors, path, {"format": "pt", **metadata})
    return path


def kohya(layer):
    return ("lora_te_" if layer.startswith("text") else "lora_unet_") + layer.replace(".", "_")


def assert_added(found, before, layers, scale):
    for name, tensor in before.items():
        layer = name.removesuffix(".weight")
        if name.endswith(".weight") and layer in layers:
            number = list(layers).index(layer)
            change = scale * product(*factors(layers[layer], seed=number))
            assert np.abs(change).max() > 0.1
            np.testing.assert_allclose(found[name], tensor + change, atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize(
    "forms,name,alpha",
    [
        (DIFFUSERS, "unet.{}".format, None),
        (OLDER, "unet.{}".format, None),
        (OLDER, "{}".format, None),
        (OLDEST, "unet.{}".format, None),
        (KOHYA, kohya, 3.0),
        (KOHYA, kohya, None),
    ],
)
def test_the_unet_gets_the_formula(unet, add_to_unet, tmp_path, forms, name, alpha):
    before = as_published(unet.params, latent_unet.name_function(unet.network))
    file = write(tmp_path / "lora.safetensors", UNET, forms, name, alpha)
    scale = 1.0 if alpha is None else alpha / 2
    assert_added(add_to_unet({file: 1.0}), before, UNET, scale)


def test_attention_processors(unet, add_to_unet, tmp_path):
    layers = {TO_Q: (8, 8), TO_OUT: (8, 8)}
    before = as_published(unet.params, latent_unet.name_function(unet.network))

    def name(layer):
        attention, kind = layer.removesuffix(".0").rsplit(".", 1)
        return f"{attention}.processor.{kind}"

    file = write(tmp_path / "lora.safetensors", layers, OLD_ATTENTION, name)
    assert_added(add_to_unet({file: 0.5}), before, layers, 0.5)


@pytest.mark.parametrize(
    "forms,name",
    [
        (DIFFUSERS, "text_encoder.{}".format),
        (DIFFUSERS, lambda layer: f"text_encoder.{layer.removeprefix('text_model.')}"),
        (OLD_ATTENTION, lambda layer: f"text_encoder.{layer}".replace("q_proj", "to_q")),
        (KOHYA, kohya),
    ],
)  # fmt: skip
def test_the_text_encoder_gets_the_formula(text, add_to_text, tmp_path, forms, name):
    layers = {Q_PROJ: (16, 16)}
    before = as_published(text.params, functools.partial(clip.name, text.network))
    file = write(tmp_path / "lora.safetensors", layers, forms, name)
    assert_added(add_to_text({file: 2.0}), before, layers, 2.0)


def test_several_files_add_up(unet, add_to_unet, tmp_path):
    before = as_published(unet.params, latent_unet.name_function(unet.network))
    one = write(tmp_path / "one.safetensors", {TO_Q: (8, 8)}, DIFFUSERS, "unet.{}".format)
    two = write(tmp_path / "two.safetensors", {TO_Q: (8, 8)}, KOHYA, kohya, 1.0)
    assert_added(add_to_unet({one: 0.25, two: 1.5}), before, {TO_Q: (8, 8)}, 0.25 + 0.75)


def test_a_linear_file_fits_a_convolution_of_one_pixel(unet, add_to_unet, tmp_path):
    layer = f"{BLOCK}.proj_in"
    file = write(tmp_path / "lora.safetensors", {layer: (8, 8)}, DIFFUSERS, "unet.{}".format)
    found = add_to_unet({file: 1.0})[f"{layer}.weight"]
    whole = write(tmp_path / "b.safetensors", {layer: (8, 8, 1, 1)}, DIFFUSERS, "unet.{}".format)
    np.testing.assert_array_equal(found, add_to_unet({whole: 1.0})[f"{layer}.weight"])


def test_as_diffusers_fuses_them(add_to_unet, add_to_text, tmp_path):
    with safetensors.safe_open(GOLDEN, framework="numpy") as file:
        files = json.loads(file.metadata()["recorded"])["files"]
    recorded = safetensors.numpy.load_file(GOLDEN)
    compared = 0
    for layout, content in files.items():
        shapes = content["shapes"]
        tensors = drawn_weights.draw_all({n: s for n, s in shapes.items() if s})
        tensors |= {n: np.array(ALPHA, np.float32) for n, s in shapes.items() if not s}
        path = tmp_path / f"{layout}.safetensors"
        safetensors.numpy.save_file(tensors, path, content["metadata"])
        found = {"unet": add_to_unet({path: SCALE}), "text_encoder": add_to_text({path: SCALE})}
        for name, values in recorded.items():
            if name.startswith(f"{layout}/"):
                part, layer = name.removeprefix(f"{layout}/").split(".", 1)
                ours = found[part][f"{layer}.weight"].ravel()[::EVERY]
                np.testing.assert_allclose(ours, values, atol=1e-6, err_msg=name)
                compared += 1
    assert compared == len(recorded) == 26


def test_what_is_written_is_read(unet, add_to_unet, tmp_path):
    names = latent_unet.name_function(unet.network)
    paths = {
        "down_0_attention_0/block_0/attention_self/query/kernel": ((8,), (2, 4)),
        "down_0_attention_0/block_0/attention_self/out/kernel": ((2, 4), (8,)),
        "down_0_attention_0/block_0/mlp/linear_in/kernel": ((8,), (2, 32)),
        "down_0_attention_0/project_in/kernel": ((8,), (8,)),
        "down_0_resize/conv/kernel": ((3, 3, 8), (8,)),
    }
    rng = np.random.default_rng(0)
    pairs = {p: (rng.normal(size=(*i, 2)), rng.normal(size=(2, *o))) for p, (i, o) in paths.items()}
    file = lora.write(tmp_path / "lora.safetensors", pairs, names, scale=1.5)
    read = lora.read(file)
    assert len(read.parts[lora.UNET]) == 5 and not read.parts[lora.TEXT]
    changes = lora.changes([(read, 1.0)], lora.UNET, unet.params, names)
    assert changes.keys() == paths.keys()
    for path, (down, up) in pairs.items():
        wanted = 1.5 * np.tensordot(down, up, 1)
        np.testing.assert_allclose(changes[path], wanted, atol=1e-5, err_msg=path)
    shapes = {name: t.shape for name, t in safetensors.numpy.load_file(file).items()}
    assert shapes["unet.down_blocks.0.downsamplers.0.conv.lora_A.weight"] == (2, 8, 3, 3)
    assert shapes["unet.down_blocks.0.downsamplers.0.conv.lora_B.weight"] == (8, 2, 1, 1)
    assert shapes[f"unet.{TO_OUT}.lora_A.weight"] == (2, 8)
    with pytest.raises(FileExistsError, match="exists already"):
        lora.write(file, pairs, names, scale=1.0)


def bad_files():
    down, up = factors((8, 8))
    name = f"unet.{TO_Q}"
    pair = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
    three = np.concatenate([up, up[:, :1]], axis=1)
    settings = {"lora_adapter_metadata": json.dumps({"unet.use_dora": True})}
    other = {layer.replace("to_q", "to_z"): tensor for layer, tensor in pair.items()}
    return {
        "rank": ({**pair, f"{name}.lora_B.weight": three}, {}, r"to_q: down .*\(2, 8\).*\(8, 3\)"),
        "partner": ({f"{name}.lora_A.weight": down}, {}, "to_q lacks up"),
        "layer": (other, {}, "to_z: the model's unet has no such layer"),
        "shape": ({**pair, f"{name}.lora_A.weight": down[:, :5]}, {}, r"\(2, 5\).*\(8, 8\)"),
        "kind": ({**pair, f"{name}.dora_scale": up}, {}, "to_q.dora_scale: not understood"),
        "alpha": ({**pair, f"{name}.alpha": up}, {}, r"alpha has shape \(8, 2\)"),
        "twice": ({**pair, f"{name}.lora.down.weight": down}, {}, "has two down"),
        "settings": (pair, settings, "unet.use_dora = True: not implemented"),
        "empty": ({}, {"format": "pt"}, "holds no tensors"),
    }


@pytest.mark.parametrize("case", bad_files())
def test_a_file_that_is_not_understood_is_refused_by_name(add_to_unet, tmp_path, case):
    tensors, metadata, message = bad_files()[case]
    path = tmp_path / "lora.safetensors"
    safetensors.numpy.save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=message):
        add_to_unet({path: 1.0})


def test_pickles_and_missing_files_are_refused(tmp_path):
    path = tmp_path / "lora.bin"
    path.write_bytes(pickle.dumps({}))
    with pytest.raises(ValueError, match=r"lora.bin: allowed are .safetensors files"):
        lora.read(path)
    path.rename(tmp_path / "lora.safetensors")
    with pytest.raises(ValueError, match="no safetensors file"):
        lora.read(tmp_path / "lora.safetensors")
    with pytest.raises(FileNotFoundError, match="no such file"):
        lora.read(tmp_path / "elsewhere.safetensors")
