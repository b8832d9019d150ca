"""The judge reads rendered clips right, and does not read broken ones right."""

import numpy as np
import pytest

from vdm_jax.data import moving_shapes
from vdm_jax.data.moving_shapes import MovingShapes
from vdm_jax.data.shapes import Combination, Motion, make_caption, render, render_clips
from vdm_jax.evaluation.judge import Reading, judge, score, wobble

CONFIGS = {config.name: config for config in MovingShapes.BUILDER_CONFIGS}
RED = Combination("red", "circle", "left")
SQUARE = Combination("red", "square", "left")
BLUE = Combination("blue", "circle", "left")


def held_out(name, count):
    scenes, videos = zip(*moving_shapes.clips(CONFIGS[name], "held_out", count), strict=True)
    return np.stack(videos), [make_caption(scene) for scene in scenes]


@pytest.mark.parametrize("name", list(CONFIGS))
def test_rendered_clips_are_read_right(name):
    count = 64 if CONFIGS[name].size < 64 else 32
    scores = score(*held_out(name, count))
    assert scores.pop("n") == count
    assert min(scores.values()) >= 0.995, scores


@pytest.mark.parametrize("name", ["16x16x8", "16x16x8_two", "32x32x8"])
def test_mild_noise_blur_and_dimming_are_forgiven(name):
    videos, captions = held_out(name, 56)
    x = 0.85 * videos.astype(np.float32)
    for axis in (2, 3):  # a little blur: each neighbour gives a tenth
        x = 0.8 * x + 0.1 * (np.roll(x, 1, axis) + np.roll(x, -1, axis))
    x += np.random.default_rng(0).normal(size=x.shape) * 0.05 * 255
    scores = score(np.clip(np.round(x), 0, 255).astype(np.uint8), captions)
    assert scores["all"] >= 0.98, scores


def test_wrong_captions_are_wrong_in_the_right_factor():
    videos, captions = held_out("16x16x8", 56)
    swap = {"left": "right", "right": "left", "up": "down", "down": "up"}
    turned = [" ".join([*c.split()[:-1], swap[c.split()[-1]]]) for c in captions]
    scores = score(videos, turned)
    assert scores == {"color": 1.0, "shape": 1.0, "direction": 0.0, "all": 0.0, "n": 56}
    np.testing.assert_allclose(score(videos[:, ::-1], turned)["all"], 1.0)


def test_two_objects_must_not_swap_their_factors():
    scene = (Combination("red", "circle", "left"), Combination("blue", "square", "up"))
    video = render_clips([scene], size=16, num_frames=8)
    assert score(video, [make_caption(scene)])["all"] == 1
    assert score(video, [make_caption(scene[::-1])])["all"] == 1
    mixed = (Combination("red", "square", "left"), Combination("blue", "circle", "up"))
    assert score(video, [make_caption(mixed)])["all"] == 0


def clip(what, displacement=(-0.5, 0), start=(0.72, 0.5), radius=3.5 / 16, frames=8):
    motion = Motion(
        radius=np.array([[radius]]),
        start=np.array([[start]]),
        displacement=np.array([[displacement]], float),
    )
    return render([[what]], motion, 16, frames)[0]


def halves(first, second):
    return np.concatenate([first[:4], second[4:]])


def without(video, *frames):
    video = video.copy()
    video[list(frames)] = 0
    return video


BROKEN = {
    "empty": np.zeros((8, 16, 16, 3), np.uint8),
    "grey noise": np.random.default_rng(0).integers(0, 70, (8, 16, 16, 3)).astype(np.uint8),
    "colour noise": np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3)).astype(np.uint8),
    "white": np.full((8, 16, 16, 3), 255, np.uint8),
    "all red": np.full((8, 16, 16, 3), (255, 0, 0), np.uint8),
    "still": clip(RED, displacement=(0, 0)),
    "hardly moves": clip(RED, displacement=(-0.1, 0)),
    "moves askew": clip(RED, displacement=(-0.5, -0.4), start=(0.72, 0.72)),
    "jumps": clip(RED)[[0, 0, 0, 0, 7, 7, 7, 7]],
    "turns back": clip(RED)[[0, 2, 4, 6, 7, 5, 3, 1]],
    "shuffled": clip(RED)[[3, 0, 5, 1, 7, 2, 6, 4]],
    "vanishes once": without(clip(RED), 3),
    "vanishes at the end": without(clip(RED), 5, 6, 7),
    "changes colour": halves(clip(RED), clip(BLUE)),
    "changes shape": halves(clip(RED), clip(SQUARE)),
    "changes size": halves(clip(RED), clip(RED, radius=1.8 / 16)),
    "is a blob": np.maximum(clip(RED, radius=2 / 16), clip(RED, radius=2 / 16, start=(0.72, 0.2))),
    "is long": clip(RED) | np.roll(clip(RED), 5, axis=1),
    "has a ghost": np.maximum(clip(RED), clip(BLUE, (0, 0), (0.2, 0.2), 2.5 / 16)),
    "has a white ghost": np.maximum(
        clip(RED, start=(0.72, 0.7)),
        clip(BLUE, (0, 0), (0.2, 0.2), 2.5 / 16).max(-1, keepdims=True),
    ),
    "is grey": np.repeat(clip(RED)[..., :1], 3, axis=-1),
}


def test_the_sound_clip_of_the_broken_ones_is_right():
    assert judge(clip(RED)) == [Reading("red", "circle", "left")]


@pytest.mark.parametrize("what", BROKEN)
def test_broken_clips_are_not_right(what):
    assert score(BROKEN[what][None], [make_caption([RED])])["all"] == 0


def test_what_is_still_true_of_a_broken_clip_is_read():
    assert judge(BROKEN["empty"]) == []
    assert judge(BROKEN["still"]) == [Reading("red", "circle", "none")]
    assert judge(BROKEN["changes shape"]) == [Reading("red", "none", "left")]
    assert judge(BROKEN["vanishes once"]) == [Reading("red", "none", "left")]


def test_bad_arguments_are_named():
    video = np.zeros((1, 8, 16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="float32"):
        judge(video[0].astype(np.float32))
    with pytest.raises(ValueError, match="square"):
        judge(video[0, :, :8])
    with pytest.raises(ValueError, match="1 videos and 2 captions"):
        score(video, [make_caption([RED])] * 2)


def test_wobble_is_the_distance_from_uniform_motion():
    (clip,) = render_clips([(RED,)], size=16, num_frames=32, seed=(0,))
    assert wobble(clip) < 0.005
    shaken = clip.copy()
    shaken[::2] = np.roll(clip[::2], 1, axis=1)  # by one pixel of 16, every other frame
    np.testing.assert_allclose(wobble(shaken), 0.5 / 16, atol=0.005)
    assert np.isnan(wobble(np.zeros_like(clip)))
    gone = clip.copy()
    gone[::2] = 0
    assert np.isnan(wobble(gone))
