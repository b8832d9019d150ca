"""Probabilities of frames become transitions, whatever the windows they come from."""

import numpy as np
import pytest

import vdm_jax.models.transnet as network
from vdm_jax.data.curation import transnet
from vdm_jax.data.curation.cuts import Transition
from vdm_jax.data.curation.transnet import TransNetCuts


def flagged(length, frames, threshold=0.5):
    """Transitions found by a network that is sure of these frames. A frame's number is its grey."""
    calls = []

    def predict(window):
        assert window.shape == (100, 27, 48, 3)
        numbers = window[:, 0, 0, 0].astype(int)
        calls.append(numbers)
        return np.isin(numbers, frames).astype(np.float32)

    finder, found = TransNetCuts(predict, threshold), []
    for number in range(length):
        found += finder.add(np.full((54, 96, 3), number, np.uint8))
        assert finder.settled <= number + 1
        assert all(one.first <= finder.settled for one in found)
    return found + finder.finish(), calls


@pytest.mark.parametrize("at", [1, 24, 25, 49, 50, 74, 75, 118])
def test_a_cut_is_behind_the_frame_that_is_flagged(at):
    found, _ = flagged(120, [at])
    assert found == [Transition(at + 1, at + 1)]


def test_a_gradual_transition_leaves_its_frames_out():
    found, _ = flagged(160, range(95, 107))  # across two windows
    assert found == [Transition(96, 107)]


def test_windows_are_the_authors():
    """The first and the last frame are repeated 25 times and more."""
    _, calls = flagged(120, [])
    padded = np.concatenate([[0] * 25, np.arange(120), [119] * 55])
    expected = [padded[start : start + 100] for start in (0, 50, 100)]
    np.testing.assert_array_equal(calls, expected)


def test_a_film_shorter_than_a_window():
    found, calls = flagged(10, [4])
    assert found == [Transition(5, 5)]
    assert len(calls) == 1


def test_frames_have_the_networks_size():
    assert (transnet.HEIGHT, transnet.WIDTH) == (network.HEIGHT, network.WIDTH)
