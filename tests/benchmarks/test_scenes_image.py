"""The measures of the latent image model of scenes."""

import functools
import types

import numpy as np
import pytest

from benchmarks import scenes_control, scenes_image
from vdm_jax.evaluation import clips


@pytest.fixture(scope="module")
def frames():
    return clips.from_rendered("scenes", "64x64x16", "held_out", 4, frames=True)


@pytest.fixture(scope="module")
def rows():
    data = types.SimpleNamespace(config="64x64x16")
    model = types.SimpleNamespace(config=types.SimpleNamespace(data=data))
    return scenes_control.make_rows(model, "edges", 4)


def test_outlines_are_of_the_foreground(rows):
    for row in rows:
        score = functools.partial(scenes_control.outline_f1, row.caption, row.frame)
        assert score(row.frame) == 1
        assert score(np.roll(row.frame, (1, 1), (0, 1))) > 0.9
        assert score(np.roll(row.frame, (32, 32), (0, 1))) < 0.5


def test_depth_is_wrong_where_the_foreground_is_elsewhere(rows):
    for row in rows:
        right = scenes_control.depth_error(row, row.frame)
        wrong = scenes_control.depth_error(row, np.roll(row.frame, (32, 32), (0, 1)))
        assert right < 6 and wrong > 2 * right
        assert row.hint.shape == (64, 64, 1) and set(np.unique(row.hint)) == {0, 255}


def test_the_rows_are_the_frames_whose_captions_are_sampled(rows, frames):
    for row, video, caption in zip(rows, frames.videos, frames.captions, strict=True):
        np.testing.assert_array_equal(row.frame, video[0])
        assert row.caption == caption


def test_fid_grows_with_what_is_done_to_images(frames):
    true = frames.videos
    assert scenes_image.features(true).shape == (4, 128)
    assert scenes_image.fid(true, true) < 1e-3
    noisy = np.clip(true + np.random.default_rng(0).normal(0, 20, true.shape), 0, 255)
    slightly = np.clip(true + np.random.default_rng(0).normal(0, 4, true.shape), 0, 255)
    few, many = (scenes_image.fid(x.astype(np.uint8), true) for x in (slightly, noisy))
    assert 1e-3 < few < many


def test_the_share_has_its_interval(frames):
    found = scenes_image.judged(frames.videos, frames.captions)
    assert found["all"] == 1.0 and found["n"] == 4
    assert found["all_interval"] == "[0.510, 1.000]"
