"""The measures of the latent image model of scenes."""

import numpy as np
import pytest

from benchmarks import scenes_image
from vdm_jax.evaluation import clips


@pytest.fixture(scope="module")
def frames():
    return clips.from_rendered("scenes", "64x64x16", "held_out", 4, frames=True)


def test_outlines_are_of_the_foreground(frames):
    for video, caption in zip(frames.videos, frames.captions, strict=True):
        frame = video[0]
        assert scenes_image.outline_f1(caption, frame, frame) == 1
        shifted = np.roll(frame, (1, 1), (0, 1))
        assert scenes_image.outline_f1(caption, frame, shifted) > 0.9
        elsewhere = np.roll(frame, (32, 32), (0, 1))
        assert scenes_image.outline_f1(caption, frame, elsewhere) < 0.5


def test_the_share_has_its_interval(frames):
    found = scenes_image.judged(frames.videos, frames.captions)
    assert found["all"] == 1.0 and found["n"] == 4
    assert found["all_interval"] == "[0.510, 1.000]"
