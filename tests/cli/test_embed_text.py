"""Captions are embedded by the command, and a model learns from what it stored."""

import json
import shutil

import numpy as np
import pytest

from tests import tiny
from tests.models.text import test_minilm
from tests.weights import test_clip_inputs
from vdm_jax import config as config_lib
from vdm_jax import systems
from vdm_jax.cli import embed_text, train
from vdm_jax.data import pipeline
from vdm_jax.data.source import DataError
from vdm_jax.models.condition import TextStates
from vdm_jax.stage import frozen_text

CAPTIONS = ["a blue square", "a green square", "a red square"]


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    """The tiny configuration with a tiny MiniLM of random weights."""
    folder = tmp_path_factory.mktemp("embed")
    weights = test_minilm.write_folder(folder / "weights")
    path = tiny.write_config(folder, steps=1, every=1)
    changes = f"""config.text.encoder = "minilm"
    config.text.weights = {str(weights)!r}
    return config"""
    path.write_text(path.read_text().replace("return config", changes))
    return path


def embed(config_file, *arguments):
    assert embed_text.main([f"--config={config_file}", *arguments]) == 0


def test_captions_are_embedded_once_and_a_model_learns_from_them(config_file, tmp_path, capsys):
    config = config_lib.load_config(config_file)
    stored = config_file.parent / "videos" / "text_embeddings"
    with pytest.raises(DataError, match=r"no embeddings of captions by text.encoder = 'minilm'"):
        train.main([f"--config={config_file}", f"--workdir={tmp_path / 'run'}"])

    embed(config_file, "--captions_per_file=1", "--shard=0/2")
    embed(config_file, "--captions_per_file=1", "--shard=1/2")
    assert "(share 1 of 2)" in capsys.readouterr().out
    encoder = frozen_text.make_frozen_text_encoder(config.text.to_dict())
    folder = stored / f"minilm-{encoder.identity[:16]}"
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) == 3
    times = {file: file.stat().st_mtime_ns for file in files[1:]}
    files[0].unlink()
    embed(config_file)
    assert "3 captions, 1 to embed by minilm, 6 tokens of 12" in capsys.readouterr().out
    assert sorted(folder.glob("*.safetensors")) == files
    assert {file: file.stat().st_mtime_ns for file in files[1:]} == times

    # What is stored is what the encoder says, bit by bit where batches are the same.
    stage = systems.build(config)
    assert [c.width for c in stage.network.conditions if isinstance(c, TextStates)] == [12]
    assert "tokens" not in stage.network.reads
    dataset = pipeline.make_dataset(
        config, text_encoder=stage.text_encoder, batch_size=3, seed=0, train=False, report=None
    )
    iterator = iter(dataset)
    batch = next(iterator)
    iterator.close()
    expected = encoder.encode(CAPTIONS)
    np.testing.assert_array_equal(batch["token_mask"], expected["token_mask"])
    np.testing.assert_allclose(batch["text_embeddings"], expected["text_embeddings"], atol=2e-3)
    abstract = stage.abstract_batch(3)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in abstract.items()
    }

    workdir = tmp_path / "run"
    assert train.main([f"--config={config_file}", f"--workdir={workdir}"]) == 0
    saved = config_lib.from_json((workdir / "config.json").read_text())
    assert saved.text.identity == encoder.identity
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    assert all(np.isfinite(json.loads(line).get("loss", 0)) for line in lines) and lines
    # Prompts are encoded by the same weights, or not at all.
    assert systems.build(saved).text_encoder.expected == encoder.identity

    # A run that is resumed stays with the weights that it began with.
    other = folder.with_name("minilm-ffff")
    shutil.copytree(folder, other)
    meta = json.loads((other / "meta.json").read_text()) | {"identity": "ffff"}
    (other / "meta.json").write_text(json.dumps(meta))
    resumed = train._with_vocabulary(config, str(workdir))
    assert resumed.text.identity == encoder.identity
    shutil.rmtree(folder)
    with pytest.raises(DataError, match=rf"identity = '{encoder.identity[:16]}'; there are ffff"):
        train.main([f"--config={config_file}", f"--workdir={workdir}"])
    shutil.rmtree(other)


def test_an_encoder_without_embeddings_is_refused(config_file):
    with pytest.raises(config_lib.ConfigError, match="'words': is not a frozen text encoder"):
        embed_text.main([f"--config={config_file}", "--config.text.encoder=words"])
    for wrong in ("2/2", "1", "a/b"):
        with pytest.raises(SystemExit):
            embed_text.main([f"--config={config_file}", f"--shard={wrong}"])


def test_a_mesh_changes_nothing(config_file, capsys):
    embed(config_file, "--mesh=data=1", "--batch_size=2")
    embed(config_file)
    assert "0 to embed" in capsys.readouterr().out


def test_clips_empty_text_is_embedded_beside_the_captions(tmp_path, capsys):
    weights = test_clip_inputs.write_text_folder(tmp_path / "weights")
    path = tiny.write_config(tmp_path, steps=1, every=1)
    changes = f"""config.text.encoder = "clip"
    config.text.weights = {str(weights)!r}
    return config"""
    path.write_text(path.read_text().replace("return config", changes))
    embed(path)
    assert "4 captions, 4 to embed by clip, 6 tokens of 32" in capsys.readouterr().out
    config = config_lib.load_config(path)
    stage = systems.build(config)
    dataset = pipeline.make_dataset(
        config, text_encoder=stage.text_encoder, batch_size=3, seed=0, train=False, report=None
    )
    iterator = iter(dataset)
    batch = next(iterator)
    iterator.close()
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in stage.abstract_batch(3).items()
    }
    for prefix, captions in (("", CAPTIONS), ("null_", [""] * 3)):
        expected = stage.text_encoder.encode(captions)["text_embeddings"]
        np.testing.assert_allclose(batch[f"{prefix}text_embeddings"], expected, atol=5e-3)
    assert np.abs(expected).max() > 0.5 and not {"keep_text"} & stage.cond_shapes(1, 0).keys()
