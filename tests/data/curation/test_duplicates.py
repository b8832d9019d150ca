"""Copies of clips are found, whatever was done to them, and other clips are not."""

import cv2
import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from tests.data.curation import films
from vdm_jax.data.curation import duplicates, tracks
from vdm_jax.data.curation.settings import Duplicates


def hashes(pictures, step=4):
    found = [tracks.picture_hash(picture, 6.0) for picture in pictures[::step]]
    return [one for one in found if one is not None]


def coded(pictures):
    return [
        cv2.imdecode(cv2.imencode(".jpg", one, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], 1)
        for one in pictures
    ]


def test_copies_are_found_within_and_across_films():
    scenes = [films.scene(seed, 72, pan=(0.1, 0.5)) for seed in range(5)]
    clips = [
        hashes(scenes[0]),
        hashes(scenes[1]),
        hashes(coded(scenes[0][2:])),  # begins a little later
        hashes(scenes[1][:, :, ::-1]),  # mirrored
        hashes(scenes[2]),
        hashes(coded(scenes[0][20:60])),  # a part
        hashes(scenes[3]),
    ]
    assert duplicates.find(clips, Duplicates()) == [None, None, 0, 1, None, 0, None]


def test_a_shared_picture_makes_no_copy():
    one, other = films.scene(1, 72), films.scene(2, 72)
    other[:12] = one[:12]
    assert duplicates.find([hashes(one), hashes(other)], Duplicates()) == [None, None]


def test_clips_without_hashes_are_no_copies():
    assert duplicates.find([[], [], [5]], Duplicates()) == [None, None, None]
    assert duplicates.find([], Duplicates()) == []


def test_a_mirrored_copy_matches_in_one_orientation_only():
    numbers = np.arange(1, 9, dtype=np.uint64) * np.uint64(0x0123456789ABCDE)
    mirrored = numbers ^ np.uint64(tracks.MIRROR)
    assert duplicates.alike(numbers, mirrored, 0) == 1
    half = np.concatenate([numbers[:4], mirrored[4:]])
    assert duplicates.alike(numbers, half, 0) == 0.5


@hypothesis.settings(max_examples=60, deadline=None)
@hypothesis.given(
    st.lists(
        st.lists(st.integers(0, 40).map(lambda n: n * 0x3F1D59A7C0FFEE1 % 2**63), max_size=6),
        max_size=9,
    )
)
def test_equal_pictures_are_found_as_by_comparing_all(clips):
    settings = Duplicates(distance=0)
    found = duplicates.find(clips, settings)
    arrays = [np.array(one, np.uint64) for one in clips]
    for later, first in enumerate(found):
        shares = [duplicates.alike(arrays[later], arrays[one], 0) for one in range(later)]
        assert (first is not None) == (max(shares, default=0) >= settings.share)
        if first is not None:
            assert found[first] is None


@pytest.mark.parametrize("count", [duplicates._COMMON + 5])
def test_a_picture_that_everything_has_costs_no_quadratic_time(count):
    common = 0x1234_5678_9ABC
    rng = np.random.default_rng(0)
    clips = [[common, *rng.integers(0, 2**62, 5).tolist()] for _ in range(count)]
    pairs = list(duplicates._candidates([np.array(one, np.uint64) for one in clips]))
    assert len(pairs) < count
