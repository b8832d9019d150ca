"""LoRA files on a published pipeline, and LoRAs that are trained, sampled and written."""

import argparse
import functools
import json

import flax.linen as nn
import jax
import numpy as np
import pytest
import safetensors.numpy

import vdm_jax
from tests import tiny
from tests.systems.test_latent_image import write_folder
from vdm_jax import cli, pipelines, systems
from vdm_jax import config as config_lib
from vdm_jax.cli import common
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage.low_rank import BASE
from vdm_jax.training import checkpoints
from vdm_jax.weights import fetch

LAYER = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
PATH = "down_0_attention_0", "block_0", "attention_self", "query", "kernel"
TEXT = "text_model.encoder.layers.0.mlp.fc1"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        yield write_folder(folder / "model")


@pytest.fixture(scope="module")
def file(folder):
    """A LoRA of one layer of the U-Net and one of the text encoder."""
    rng, path = np.random.default_rng(0), folder.parent / "style.safetensors"
    shapes = {
        f"unet.{LAYER}.lora_A.weight": (2, 8),
        f"unet.{LAYER}.lora_B.weight": (8, 2),
        f"text_encoder.{TEXT}.lora_A.weight": (2, 16),
        f"text_encoder.{TEXT}.lora_B.weight": (32, 2),
    }
    tensors = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    safetensors.numpy.save_file(tensors, path, {"format": "pt"})
    return path


def leaf(params):
    return np.asarray(functools.reduce(lambda tree, key: tree[key], PATH, params))


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return ended.value.code


def test_a_folder_is_loaded_with_loras(folder, file):
    plain, adapted = vdm_jax.load(folder), vdm_jax.load(folder, loras={file: 0.5})
    factors = safetensors.numpy.load_file(file)
    up, down = factors[f"unet.{LAYER}.lora_B.weight"], factors[f"unet.{LAYER}.lora_A.weight"]
    change = 0.5 * (up @ down).T.reshape(leaf(plain.params).shape)
    np.testing.assert_allclose(leaf(adapted.params), leaf(plain.params) + change, atol=1e-6)
    states = [m.stage.encode(["a cat"])["text_embeddings"] for m in (plain, adapted)]
    assert np.abs(states[0] - states[1]).max() > 0.01
    assert adapted.config.text.loras == ((str(file), 0.5),)


def test_models_without_such_files_refuse_them(folder, file):
    with pytest.raises(ValueError, match="system = 'vdm': there are no published LoRA"):
        vdm_jax.load("moving_shapes", loras={file: 1.0})
    with pytest.raises(ValueError, match="'imagen_video_tiny' is a cascade"):
        pipelines.load("imagen_video_tiny", loras={file: 1.0})


def test_a_flag_has_a_file_and_a_scale():
    assert common.lora("a/b.safetensors") == ("a/b.safetensors", 1.0)
    assert common.lora("C:b.safetensors") == ("C:b.safetensors", 1.0)
    assert common.lora("b.safetensors:-0.7") == ("b.safetensors", -0.7)
    with pytest.raises(argparse.ArgumentTypeError, match="much.* is not FILE or FILE:SCALE"):
        common.lora("b.safetensors:much")


def low_rank_config(folder):
    config = systems.read_published(folder).copy_and_resolve_references()
    with config.unlocked():
        config.train.lora.update({"rank": 2, "alpha": 3.0, "base": str(folder)})
        config.train.lora.targets = r"attention_self/(query|out)/|resize/conv"
    return pretrained.with_base(config)


@pytest.fixture(scope="module")
def trained(folder):
    """The file of a LoRA of the folder, as `vdm export` writes it."""
    config = low_rank_config(folder)
    shapes = nn.meta.unbox(systems.build(config).abstract_params())
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    return vdm_jax.save_model(folder.parent / "trained.safetensors", params, config)


def test_a_trained_lora_is_written_and_equals_itself_merged(folder, trained, tmp_path, capsys):
    model = vdm_jax.load(trained)
    pairs = model.stage.pairs(model.params)
    assert [part.shape for part in pairs["/".join(PATH)]] == [(8, 2), (2, 2, 4)]
    merged = model.stage.network_params(model.params, model.frozen)
    convert = ("convert", "--to=diffusers", f"--model={trained}")
    assert run(*convert, f"--out={tmp_path / 'lora'}") == 0
    assert "pytorch_lora_weights.safetensors" in capsys.readouterr().out
    file = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    assert run(*convert, f"--out={tmp_path / 'merged'}", "--merged") == 0
    by_file = vdm_jax.load(folder, loras={file: 1.0}).params
    by_folder = vdm_jax.load(tmp_path / "merged").params
    assert np.abs(leaf(merged) - leaf(model.frozen[BASE])).max() > 0.1
    for params in (by_file, by_folder):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), params, merged)
    with pytest.raises(ValueError, match="is adapted itself"):
        vdm_jax.load(trained, loras={file: 1.0})


def test_a_changed_base_is_refused(folder, trained, tmp_path):
    path = folder / "scheduler" / "scheduler_config.json"
    before = path.read_text()
    path.write_text(json.dumps({**json.loads(before), "beta_end": 0.013}))
    try:
        with pytest.raises(ValueError, match="train.lora.base = .*was trained on sha256:"):
            vdm_jax.load(trained)
    finally:
        path.write_text(before)
    with pytest.raises(config_lib.ConfigError, match="train.lora.base = ''"):
        config_lib.load_config(tiny.write_config(tmp_path), {"train.lora.rank": "2"})


@pytest.fixture(scope="module")
def run_of_a_lora(tmp_path_factory):
    """A base of pixels, and the workdir of a LoRA that `vdm train` made of it."""
    folder = tmp_path_factory.mktemp("pixels")
    config = config_lib.load_config(tiny.write_config(folder, steps=4))
    with config.unlocked():
        config.text.vocabulary = ("red", "blue", "green")
    shapes = nn.meta.unbox(systems.build(config).abstract_params())
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda leaf: 0.2 * rng.normal(size=leaf.shape), shapes)
    params = jax.tree.map(lambda leaf: leaf.astype(np.float32), params)
    base = vdm_jax.save_model(folder / "base.safetensors", params, config)
    arguments = ["train", f"--config={folder / 'tiny.py'}", f"--workdir={folder / 'run'}"]
    arguments += ["--config.train.lora.rank=2", f"--config.train.lora.base={base}"]
    arguments += ["--config.train.learning_rate=0.05", "--config.train.ema_decay=0"]
    return base, folder / "run", arguments


def test_vdm_train_adapts_a_model_that_is_then_loaded_from_its_workdir(run_of_a_lora):
    base, workdir, arguments = run_of_a_lora
    digest = pretrained.digest(base)
    assert run(*arguments) == 0
    assert pretrained.digest(base) == digest
    _, saved = checkpoints.read_config(workdir)
    assert saved.train.lora.digest == digest and saved.text.vocabulary == ("red", "blue", "green")
    model, before = vdm_jax.load(workdir), vdm_jax.load(base)
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(model.params)]
    assert {path[-1].key for path in paths} == {"A", "B"}
    videos = [m.sample(jax.random.key(0), "red", steps=2).astype(int) for m in (model, before)]
    assert np.abs(videos[0] - videos[1]).max() > 2

    other = vdm_jax.save_model(
        base, jax.tree.map(lambda leaf: leaf * 1.5, before.params), before.config
    )
    assert run(*arguments, "--config.train.steps=5") == 1
    with pytest.raises(ValueError, match=f"{other.name}'.*is sha256:.*was trained on {digest}"):
        vdm_jax.load(workdir)
