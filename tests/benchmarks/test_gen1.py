"""The figures of benchmarks.gen1, on rendered clips and on random weights."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import numpy as np
import pytest

from benchmarks import gen1
from tests.systems.test_gen1 import make_config, write_pair
from tests.systems.test_latent_image import write_folder
from vdm_jax import systems
from vdm_jax.pipelines.model import Model
from vdm_jax.weights import fetch

FRAMES = 2


@pytest.fixture(scope="module")
def task():
    return gen1.make_task(3, FRAMES)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model of 64 x 64 pixels whose parameters are random."""
    folder = tmp_path_factory.mktemp("gen1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        config = make_config((write_folder(folder / "image"), write_pair(folder / "pair")))
        config.data.update({"image_size": 64, "image_width": 64})
        config.sample.update({"steps": 1, "batch_size": 3, "guidance": 2.0})
        stage, rng = systems.build(config), np.random.default_rng(0)
        shapes = nn.meta.unbox(stage.abstract_params())
        params = jax.tree.map(lambda x: 0.1 * rng.normal(size=x.shape).astype(x.dtype), shapes)
        frozen = {name: part.params for name, part in systems.read_frozen(config).items()}
        yield Model(stage=stage, params=params, config=config, frozen=frozen)


def test_a_task_has_contents_that_differ(task):
    assert task.clips.shape == (3, FRAMES, 64, 64, 3) and task.depth.shape[-1] == 1
    for own, wanted in zip(task.own, task.wanted, strict=True):
        assert own.thing != wanted.thing and own.background != wanted.background
    row = gen1.judged(task, task.clips)
    assert row["thing of the clip"].startswith("100.0%")
    assert row["background of the clip"].startswith("100.0%")
    assert row["thing of the content"].startswith("0.0%")
    images = np.repeat(task.images[:, None], FRAMES, axis=1)
    assert gen1.judged(task, images)["thing of the content"].startswith("100.0%")


def test_depth_is_compared_where_the_judge_sees_objects(task):
    true = gen1.depth_errors(task, task.clips)
    assert true.max() < 0.02  # the judge's outlines, two pixels wide
    moved = gen1.depth_errors(task, np.roll(task.clips, 32, axis=3))
    nothing = gen1.depth_errors(task, np.zeros_like(task.clips))
    assert (moved > 2 * true).all() and (nothing > 2 * true).all()


def test_rows_come_from_samples_of_the_model(task, model, tmp_path):
    options = SimpleNamespace(
        out=tmp_path, steps=1, guidance=None, levels="0,7", scales="1,1.5", prior=None
    )
    rows = gen1.structure(options, model, task)
    assert [row["t_s"] for row in rows] == ["the clips", 0, 7]
    assert {path.name for path in tmp_path.iterdir()} == {"t_s_0.png", "t_s_7.png"}
    rows = gen1.temporal(options, model, task)
    assert [row["ω_t"] for row in rows] == ["1", "1.5"]
    assert rows[0]["frame consistency, %, less that of ω_t = 1"].startswith("0.000")
    assert not rows[1]["frame consistency, %, less that of ω_t = 1"].startswith("0.000")
    rows = gen1.content(options, model, task)
    assert [row["content"] for row in rows] == ["another clip's frame", "the clip's own frame"]
