"""The judge reads rendered scenes right, also blurred and noisy ones, and broken ones not."""

import numpy as np
import pytest

from vdm_jax.data.scenes import builder, grammar, world
from vdm_jax.data.scenes.builder import Scenes
from vdm_jax.data.scenes.grammar import Item, Thing
from vdm_jax.evaluation import scene_judge, vocabularies
from vdm_jax.evaluation.judge import MOVING_SHAPES, score
from vdm_jax.evaluation.scene_judge import NOTHING, SCENES, Reading, read

# The judge reads 64 x 64 pixels.
CONFIGS = {config.name: config for config in Scenes.BUILDER_CONFIGS if config.size == 64}
COUNT = 16  # clips of a configuration and split
# Longer clips are drawn as those of 16 frames are.
NAMES = [name for name, config in CONFIGS.items() if config.frames == builder.FRAMES]


@pytest.fixture(scope="module")
def rendered():
    """By configuration and split: videos, captions, and one frame of each with its caption."""
    found = {}
    for name in NAMES:
        config = CONFIGS[name]
        for split in grammar.SPLITS:
            pairs = list(builder.clips(config, split, COUNT))
            videos = np.stack([clip.video for _, clip in pairs])
            numbers = np.arange(COUNT) * 7 % builder.FRAMES
            frames = videos[np.arange(COUNT), numbers][:, None]
            said = [scene.frame_captions[f] for (scene, _), f in zip(pairs, numbers, strict=True)]
            found[name, split] = videos, [scene.caption for scene, _ in pairs], frames, said
    return found


CASES = [(name, split) for name in NAMES for split in grammar.SPLITS]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_rendered_clips_and_frames_are_read_right(rendered, case):
    videos, captions, frames, said = rendered[case]
    clips = score(videos, captions, SCENES)
    factors = {"object", "color", "motion", "background", "all"}
    assert clips == dict.fromkeys(factors, 1.0) | {"n": COUNT}
    factors = {"object", "color", "place", "background", "all"}
    assert score(frames, said, SCENES) == dict.fromkeys(factors, 1.0) | {"n": COUNT}


@pytest.mark.parametrize("index,frame", [(6052, 13), (4690, 14)])
def test_an_object_of_the_backgrounds_colours_beside_another_is_read(index, frame):
    """A small butterfly on wood, and a white umbrella in a cloudy sky."""
    scene = CONFIGS["64x64x16_two"].scene("train", index)
    video, caption = world.render(scene, 64).video[frame][None, None], scene.frame_captions[frame]
    assert score(video, [caption], SCENES)["all"] == 1.0


def test_clips_of_half_the_size_are_read_alike(rendered):
    videos, captions, *_ = rendered["64x64x16", "held_out"]
    means = videos[:8].reshape(8, -1, 32, 2, 32, 2, 3).mean((3, 5))
    found = score(np.round(means).astype(np.uint8), captions[:8], SCENES)
    assert found["all"] == 1.0
    with pytest.raises(ValueError, match=r"must be uint8 \[f, 64, 64, 3\], or \[f, 32, 32, 3\]"):
        read(videos[0, :, :16])


def blurred(videos, sigma):
    reach = np.arange(-4, 5)
    kernel = np.exp(-(reach**2) / (2 * sigma**2))
    x = videos.astype(np.float32)
    for axis in (2, 3):
        padded = np.pad(x, [(4, 4) if a == axis else (0, 0) for a in range(5)], mode="edge")
        shifted = (np.take(padded, range(i, i + 64), axis) for i in range(9))
        x = sum(w * part for w, part in zip(kernel / kernel.sum(), shifted, strict=True))
    return np.round(x).astype(np.uint8)


def noisy(videos, deviation):
    x = videos + np.random.default_rng(0).normal(size=videos.shape) * deviation
    return np.clip(np.round(x), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("change", "amount", "least"), [(blurred, 0.5, 0.98), (blurred, 1.0, 0.94), (noisy, 8, 0.98)]
)
def test_slight_blur_and_noise_are_forgiven(rendered, change, amount, least):
    _, _, frames, said = rendered["64x64x16", "train"]
    assert score(change(frames, amount), said, SCENES)["all"] >= least


CAT, RED, DOG = Thing("cat", ""), Thing("circle", "red"), Thing("dog", "")


def scene(things=(CAT,), frames=8, background="meadow", travel=(24, 0), start=(18, 32)):
    """Objects that move together, the second one further down; lengths in pixels of 64."""
    time = np.linspace(0, 1, frames)[:, None]
    path = (np.array(start) + time * travel) / 64
    return world.Scene(
        background=background,
        things=tuple(things),
        motions=("right",) * len(things),
        diameter=np.full(len(things), 22 / 64),
        centres=path + np.array([(0, 24 * k / 64) for k in range(len(things))]).reshape(-1, 1, 2),
        depth=np.arange(200, 200 + len(things)).astype(np.uint8),
        texture=(0,),
    )


def video(*arguments, **fields):
    return world.render(scene(*arguments, **fields), 64).video


CAPTION = "a cat moving right over a green meadow"
SOUND = video()
EMPTY = video(())


def with_frames(first, second, *frames):
    mixed = first.copy()
    mixed[list(frames)] = second[list(frames)]
    return mixed


def painted(clip):
    clip = clip.copy()
    clip[:, 4:16, 40:56] = (255, 0, 200)
    return clip


BROKEN = {
    "grey": np.full_like(SOUND, 128),
    "noise": np.random.default_rng(0).integers(0, 256, SOUND.shape).astype(np.uint8),
    "empty": EMPTY,
    "another object": video((DOG,)),
    "another background": video(background="sea"),
    "background changes": with_frames(SOUND, video(background="sea"), 4, 5, 6, 7),
    "stands still": video(travel=(0, 0)),
    "moves back": SOUND[::-1],
    "moves askew": video(travel=(24, 20), start=(18, 18)),
    "jumps": SOUND[[0, 0, 0, 0, 7, 7, 7, 7]],
    "vanishes once": with_frames(SOUND, EMPTY, 2),
    "becomes another": with_frames(SOUND, video((DOG,)), 4, 5, 6, 7),
    "has company": video((CAT, DOG), start=(18, 20)),
    "has a blob": painted(SOUND),
    "is upside down": SOUND[:, ::-1],
    "is not as it should be": np.where(SOUND > 200, 255 - SOUND, SOUND),
}


@pytest.mark.parametrize("what", BROKEN)
def test_broken_clips_are_not_right(what):
    assert score(SOUND[None], [CAPTION], SCENES)["all"] == 1
    assert score(BROKEN[what][None], [CAPTION], SCENES)["all"] == 0


def test_what_is_still_true_of_a_broken_clip_is_read():
    assert read(EMPTY) == [NOTHING._replace(background="meadow")]
    assert read(BROKEN["grey"])[0].background == "none"
    still = read(BROKEN["stands still"])
    assert still == [Reading("cat", "", (), "none", "meadow")]
    assert read(BROKEN["another background"])[0] == Reading("cat", "", (), "right", "sea")
    scores = score(BROKEN["moves back"][None], [CAPTION], SCENES)
    assert scores == {"object": 1.0, "motion": 0.0, "background": 1.0, "all": 0.0, "n": 1}


def test_two_objects_must_not_swap_their_factors():
    clip = video((CAT, RED), start=(18, 20), frames=1)
    right = "a cat at the top left and a red circle at the bottom left of a green meadow"
    assert score(clip[None], [right], SCENES)["all"] == 1
    for wrong in (
        "a cat at the bottom left and a red circle at the top left of a green meadow",
        "a cat at the top left and a blue circle at the bottom left of a green meadow",
        "a cat at the top left and a red square at the bottom left of a green meadow",
        "a cat at the top left of a green meadow",
    ):
        assert score(clip[None], [wrong], SCENES)["all"] == 0


def test_a_place_on_a_border_may_be_either():
    for x, places in ((25, ("left", "middle")), (20, ("left",)), (32, ("middle",))):
        (reading,) = read(video(frames=1, start=(x, 32)))
        assert reading.places == places
    assert scene_judge.agree(Item("cat", "", "left", "", "meadow"), reading)[2] is False


def test_an_object_behind_another_is_read():
    clip = world.render(
        world.Scene(
            background="road",
            things=(CAT, RED),
            motions=("right", "up"),
            diameter=np.array([22, 20]) / 64,
            centres=np.array([[[28, 32]], [[41, 37]]]) / 64,
            depth=np.array([200, 240], np.uint8),
            texture=(0,),
        ),
        64,
    )
    assert (clip.mask == 1).sum() < (world.render(scene((CAT,), frames=1), 64).mask == 1).sum()
    assert {reading.object for reading in read(clip.video)} == {"cat", "circle"}


def test_the_vocabulary_follows_from_the_captions():
    assert vocabularies.choose([CAPTION]) is SCENES
    assert vocabularies.choose(["a red circle moving left"]) is MOVING_SHAPES
    with pytest.raises(ValueError, match=r"(?s)a COLOUR SHAPE moving DIRECTION.*a green meadow"):
        vocabularies.choose([CAPTION, "a red circle moving left"])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"float32\[8, 64, 64, 3\]: must be uint8"):
        read(SOUND.astype(np.float32))
    with pytest.raises(ValueError, match=r"\[f, 64, 64, 3\]"):
        read(SOUND[:, :24, :24])
