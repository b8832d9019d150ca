"""Cuts, fades and dissolves are found where they are, and motion is taken for none of them."""

import numpy as np
import pytest

from tests.data.curation import films
from vdm_jax.data.curation import cuts
from vdm_jax.data.curation.cuts import Transition
from vdm_jax.data.curation.settings import Cuts


def found(pictures, finder=None):
    finder = finder or cuts.CutFinder(Cuts(), films.FPS)
    transitions = []
    for picture in pictures:
        transitions += finder.add(picture)
        # What is reported later lies behind what is settled.
        assert finder.settled >= max((one.last for one in transitions), default=0)
    return transitions + finder.finish()


def test_hard_cuts_are_found_to_the_frame():
    lengths = (40, 31, 55, 47)
    film = np.concatenate([films.scene(seed, n) for seed, n in enumerate(lengths)])
    bounds = np.cumsum(lengths)[:-1].tolist()
    assert found(film) == [Transition(at, at) for at in bounds]


@pytest.mark.parametrize("frames", [8, 12, 20, 30])
def test_dissolves_are_found(frames):
    film = films.dissolve(films.scene(1, 80), films.scene(2, 80), frames)
    (one,) = found(film)
    start, end = 80 - frames, 80
    assert one.first < (start + end) / 2 < one.last
    # What lies outside may still be mixed a little, but not by a fifth.
    assert one.first <= start + frames / 4 + 2
    assert one.last >= end - frames / 4 - 2


def test_a_fade_out_and_in_leaves_no_dark_frame_in_a_shot():
    one, other = films.scene(3, 70), films.scene(4, 70)
    light = np.linspace(1, 0, 24)[:, None, None, None]
    film = np.concatenate(
        [
            one[:-24],
            one[-24:] * light,
            np.zeros_like(one[:10]),
            other[:24] * light[::-1],
            other[24:],
        ]
    ).astype(np.uint8)
    transitions = found(film)
    inside = np.zeros(len(film), bool)
    for first, last in transitions:
        inside[first:last] = True
    # The fades themselves; the black picture between them is a shot of 10 frames, too short to use.
    assert inside[50:66].all() and inside[84:96].all()
    assert not inside[:34].any() and not inside[116:].any()


@pytest.mark.parametrize("pan", [(0, 0), (0, 0.4), (0.3, 2.0), (0, 6.0)])
def test_camera_motion_is_no_transition(pan):
    film = films.scene(5, 90, pan=pan)
    assert found(film) == []


def test_motion_of_a_large_object_is_no_transition():
    assert found(films.scene(6, 90, pan=(0, 0), disc=2.5)) == []


def test_gradual_transitions_can_be_left_out():
    film = films.dissolve(films.scene(1, 60), films.scene(2, 60), 20)
    assert found(film, cuts.CutFinder(Cuts(gradual=False), films.FPS)) == []


def test_known_cuts_are_reported_once_in_order_and_at_once():
    film = np.concatenate([films.scene(seed, 40) for seed in range(3)])
    known = [Transition(40, 40), Transition(70, 84)]
    assert found(film, cuts.KnownCuts(known)) == known
    finder = cuts.KnownCuts(known)
    reported = {n: one for n, picture in enumerate(film) if (one := finder.add(picture))}
    assert reported == {40: known[:1], 84: known[1:]}
    assert finder.settled == 120


def test_transitions_that_overlap_are_one():
    pairs = [Transition(9, 9), Transition(4, 8), Transition(7, 9), Transition(20, 20)]
    assert cuts.merge(pairs) == [Transition(4, 9), Transition(20, 20)]
    assert cuts.merge([Transition(5, 5), Transition(6, 6)]) == [Transition(5, 5), Transition(6, 6)]
