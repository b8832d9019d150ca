"""Clips lie inside of shots, trimmed, of allowed lengths, however late the ends are known."""

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from vdm_jax.data.curation.clips import Clip, Divider, View
from vdm_jax.data.curation.cuts import Transition
from vdm_jax.data.curation.settings import Clips

FPS = 10.0


def divided(transitions, frames, settings, announced=()):
    """announced: frames up to which cuts are settled, in order, before each cut is."""
    divider = Divider(settings, np.arange(frames) / FPS, FPS)
    clips = []
    waiting = list(transitions)
    for settled in announced:
        while waiting and waiting[0].last < settled:
            clips += divider.cut(waiting.pop(0))
        open_at = waiting[0].first if waiting else frames
        clips += divider.advance(min(settled, open_at))
    for transition in waiting:
        clips += divider.cut(transition)
    return clips + divider.finish(frames)


def test_a_film_without_cuts_is_one_clip_and_not_trimmed():
    assert divided([], 50, Clips()) == [Clip(0, 50)]


def test_shots_are_trimmed_at_cuts():
    settings = Clips(trim=0.2, least=1.0)
    clips = divided([Transition(30, 30), Transition(60, 70)], 100, settings)
    assert clips == [Clip(0, 28), Clip(32, 58), Clip(72, 100)]


def test_short_shots_are_left_out():
    settings = Clips(trim=0.2, least=2.0)
    assert divided([Transition(40, 40), Transition(60, 60)], 100, settings) == [
        Clip(0, 38),
        Clip(62, 100),
    ]


def test_long_shots_are_divided():
    settings = Clips(trim=0.5, least=2.0, most=10.0)
    clips = divided([Transition(250, 250)], 300, settings)
    assert clips == [Clip(0, 100), Clip(100, 200), Clip(200, 245), Clip(255, 300)]


def test_a_fade_in_at_the_beginning_is_cut_off():
    assert divided([Transition(0, 12)], 60, Clips(trim=0.2)) == [Clip(14, 60)]


@st.composite
def films(draw):
    frames = draw(st.integers(5, 400))
    places = sorted(draw(st.sets(st.integers(1, frames - 1), max_size=8)))
    transitions, last = [], -1
    for place in places:
        length = draw(st.sampled_from([0, 0, 3, 9]))
        if place > last and place + length < frames:
            transitions.append(Transition(place, place + length))
            last = place + length
    announced = sorted(draw(st.lists(st.integers(0, frames), max_size=12)))
    return frames, transitions, announced


@hypothesis.settings(max_examples=200, deadline=None)
@hypothesis.given(films(), st.sampled_from([0.0, 0.2, 0.5]), st.sampled_from([4.0, 7.0]))
def test_clips_of_any_film(film, trim, most):
    frames, transitions, announced = film
    settings = Clips(trim=trim, least=1.0, most=most)
    clips = divided(transitions, frames, settings)
    assert divided(transitions, frames, settings, announced) == clips
    cut = np.zeros(frames + 1, bool)  # whether something happens between frame n - 1 and frame n
    for first, last in transitions:
        cut[first : last + 1] = True
    before = 0
    for start, end in clips:
        assert before <= start < end <= frames
        assert settings.least - 0.06 <= (end - start) / FPS <= most + 1e-6
        trimmed = round(trim * FPS)
        assert not cut[start + 1 : end].any()
        assert start == before or start == 0 or cut[max(0, start - trimmed) : start + 1].any()
        before = end


def test_times_of_variable_frame_rate():
    seconds = np.concatenate([np.arange(20) / 10, 2 + np.arange(40) / 20])
    divider = Divider(Clips(trim=0.2, least=1.0, most=60.0), seconds, 15.0)
    assert divider.cut(Transition(30, 30)) == [Clip(0, 26)]
    assert divider.finish(60) == [Clip(34, 60)]


@pytest.mark.parametrize("count,places", [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (9, [0, 4, 8])])
def test_picks_are_first_middle_and_last(count, places):
    samples = [np.full((2, 2, 3), n, np.uint8) for n in range(count)]
    view = View(seconds=1.0, fps=FPS, samples=samples, tracks={}, hashes=[])
    assert [pick[0, 0, 0] for pick in view.picks] == places
