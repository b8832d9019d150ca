"""The measures of a style that the image model of scenes learns."""

import numpy as np
import pytest

from benchmarks import pastel, scenes_style
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.evaluation import clips


@pytest.fixture(scope="module")
def frames():
    return clips.from_rendered("scenes", "64x64x16", "held_out", 4, frames=True)


@pytest.mark.parametrize("amount", [0.3, 0.5])
def test_pastel_is_taken_back(frames, amount):
    styled = pastel.pastel(frames.videos, amount)
    found = pastel.vivid(styled, amount)
    assert np.abs(found.astype(int) - frames.videos).max() <= 1
    row = scenes_style.row("frames", styled, frames.videos, styled, frames.captions)
    assert row["all"].startswith("100.0%") and row["colours"] == "0.0"


def test_pastel_is_taken_back_as_far_as_it_was_reached(frames):
    videos, texts = frames.videos, frames.captions
    row = scenes_style.row("frames", videos, videos, videos, texts)
    assert row["all"].startswith("100.0%")
    # Taking back what is not there changes colours, and the judge sees it.
    halved = scenes_style.saturation(pastel.pastel(videos)) / scenes_style.saturation(videos)
    assert halved == pytest.approx(0.5, abs=0.02)
    too_vivid = pastel.vivid(videos)
    row = scenes_style.row("frames", too_vivid, too_vivid, videos, texts)
    assert not row["all"].startswith("100.0%")


def test_colours_differ_by_their_mean_and_spread():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 200, (2, 1, 8, 8, 3), np.uint8)
    assert scenes_style.colour_distance(first, first) < 1e-3
    assert scenes_style.colour_distance(first, first + 10) == pytest.approx(10 * 3**0.5, abs=0.1)
    assert scenes_style.colour_distance(first, first // 2) > 50


def test_the_files_hold_frames_in_pastel(tmp_path):
    scenes_style.write_frames(tmp_path, 2)
    folder = VideoFolder(tmp_path, num_frames=1, image_size=64)
    assert len(folder) == 2
    drawn = clips.from_rendered("scenes", "64x64x16", "train", 20, frames=True)
    by_caption = dict(zip(drawn.captions, drawn.videos, strict=True))
    backgrounds = set()
    for number in range(2):
        read = folder[number]
        backgrounds.add(read["caption"].rpartition(" of a ")[2])
        wanted = pastel.pastel(by_caption[read["caption"]], 0.3)
        assert np.abs(read["video"].astype(int) - wanted).mean() < 8  # compression
    assert len(backgrounds) == 2
