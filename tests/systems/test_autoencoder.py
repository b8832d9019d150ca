"""An autoencoder is trained by the training loop, resumed, shown and written as it is published."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from tests import tiny
from vdm_jax import cli
from vdm_jax import config as config_lib
from vdm_jax.data import pipeline
from vdm_jax.parallel import sharding
from vdm_jax.pipelines import initial
from vdm_jax.pipelines import model as pretrained
from vdm_jax.systems import autoencoder
from vdm_jax.training import loop, optimizer, step
from vdm_jax.weights import autoencoder as weights

STEPS = 30

CONFIG = """
from vdm_jax.systems import autoencoder

def get_config():
    config = autoencoder.default_config()
    config.device = "cpu"
    config.model.autoencoder.update(
        block_out_channels=[4, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        layers_per_block=1,
        norm_num_groups=2,
        mid_block_add_attention=False,
    )
    config.loss.kl = 1e-4
    config.data.name = "video_folder"
    config.data.data_dir = {videos!r}
    config.data.image_size = 8
    config.data.workers = 0
    config.train.steps = {steps}
    config.train.batch_size = 2
    config.train.learning_rate = 1e-2
    config.train.warmup_steps = 1
    config.train.ema_decay = 0.5
    config.train.log_every = 1
    config.train.sample_every = 10
    config.checkpoint.every = 10
    return config
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("autoencoder")
    tiny.write_config(folder)
    file = folder / "autoencoder.py"
    file.write_text(CONFIG.format(videos=str(folder / "videos"), steps=STEPS))
    return config_lib.load_config(file)


@pytest.fixture(scope="module")
def train(config):
    """Trains in a folder until a step; all runs share one compiled update."""
    stage = autoencoder.build(config)
    plan = sharding.make_plan(stage, config.mesh)
    update = step.make_train_step(stage, optimizer.make_optimizer(config.train), config, plan)

    def run(workdir, steps):
        stopped = config.copy_and_resolve_references()
        with stopped.unlocked():
            stopped.train.steps = steps
        dataset = pipeline.make_dataset(
            stopped, text_encoder=None, batch_size=2, seed=0, report=None, reading=stage.reading
        )
        return loop.train(stage, stopped, workdir, dataset, plan=plan, train_step=update)

    return run


@pytest.fixture(scope="module")
def whole(train, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("run")
    return workdir, train(workdir, STEPS)


def test_the_error_falls(whole):
    lines = [json.loads(line) for line in (whole[0] / "metrics.jsonl").read_text().splitlines()]
    first, last = (np.mean([line["l1"] for line in part]) for part in (lines[:5], lines[-5:]))
    assert last < 0.7 * first
    assert all(np.isfinite(line["kl"]) and line["kl"] > 0 for line in lines)


def test_a_resumed_run_is_bit_identical(whole, train, tmp_path):
    train(tmp_path, 13)
    resumed = train(tmp_path, STEPS)
    for found, wanted in zip(
        jax.tree.leaves(resumed.state), jax.tree.leaves(whole[1].state), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def test_reconstructions_are_shown_below_their_images(whole):
    workdir, result = whole
    with Image.open(workdir / "samples" / f"step_{STEPS}.gif") as picture:
        shown = np.asarray(picture.convert("RGB"))
    # Two clips beside each other, each of one frame above its reconstruction.
    assert shown.shape[0] / shown.shape[1] == pytest.approx(16 / 16, rel=0.3)
    assert result.step == STEPS


def test_it_is_written_as_published_with_its_scale(whole, config, tmp_path, capsys):
    workdir, result = whole
    out = tmp_path / "vae"
    with pytest.raises(SystemExit) as ended:
        cli.main(["convert", "--to=diffusers", f"--model={workdir}", f"--out={out}"])
    assert ended.value.code == 0 and "the autoencoder" in capsys.readouterr().out
    network, params = weights.read_folder(out)
    for found, wanted in zip(
        jax.tree.leaves(params), jax.tree.leaves(result.state.ema), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)
    stage = autoencoder.build(config)
    mean, square = autoencoder.measure_moments(stage, config, result.state.ema).mean(1)
    assert network.scaling_factor == pytest.approx((square - mean**2) ** -0.5)
    assert network.clone(scaling_factor=stage.network.scaling_factor) == stage.network


def test_a_run_starts_from_another(whole, config):
    workdir, result = whole
    stage = autoencoder.build(config)
    begun = initial.params(workdir, stage, sharding.make_plan(stage, config.mesh))
    for found, wanted in zip(
        jax.tree.leaves(begun), jax.tree.leaves(result.state.ema), strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def test_its_working_directory_is_a_model(whole):
    model = pretrained.load(whole[0])
    assert model.config.system == autoencoder.NAME
    assert model.stage.network.factor == 2
    with pytest.raises(ValueError, match="an autoencoder, which makes no samples"):
        model.sampler()
    with pytest.raises(ValueError, match="operations are not counted"):
        model.stage.cost()


def test_a_wrong_dtype_is_refused(config):
    wrong = config.copy_and_resolve_references()
    with wrong.unlocked():
        wrong.model.dtype = "float8"
    with pytest.raises(ValueError, match="model.dtype = 'float8'"):
        autoencoder.build(wrong)
