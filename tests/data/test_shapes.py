"""The renderer against geometry, and what its splits and captions promise."""

import itertools

import numpy as np
import pytest

from vdm_jax.data import shapes
from vdm_jax.data.shapes import COMBINATIONS, HELD_OUT, SHAPES, TRAIN, Combination


def test_every_fifth_combination_is_held_out():
    assert len(COMBINATIONS) == 72
    assert COMBINATIONS[4::5] == HELD_OUT
    assert not set(HELD_OUT) & set(TRAIN)
    assert len(HELD_OUT) + len(TRAIN) == 72
    for factor in Combination._fields:  # each factor on its own is learned in training
        assert {getattr(c, factor) for c in TRAIN} == {getattr(c, factor) for c in COMBINATIONS}


def test_two_objects_differ_in_color_and_keep_to_their_split():
    for split, allowed in shapes.SPLITS.items():
        for first, second in shapes.scenes(split, 2):
            assert first.color != second.color
            assert first in allowed and second in allowed
    assert not set(shapes.captions("train", 2)) & set(shapes.captions("held_out", 2))


def test_captions_read_back():
    caption = "a red circle moving left and a blue square moving up"
    scene = (Combination("red", "circle", "left"), Combination("blue", "square", "up"))
    assert shapes.make_caption(scene) == caption
    assert shapes.parse_caption(caption) == scene
    assert len(shapes.captions("held_out")) == 14
    with pytest.raises(ValueError, match="a mauve circle moving left"):
        shapes.parse_caption("a mauve circle moving left")
    with pytest.raises(ValueError, match="train, held_out"):
        shapes.captions("test")
    with pytest.raises(ValueError, match="num_objects=3"):
        shapes.captions("train", 3)


@pytest.mark.parametrize("index, area", [(0, np.pi), (1, 4.0), (2, 2.0)], ids=SHAPES)
def test_coverage_has_the_area_and_place_of_the_shape(index, area):
    rng = np.random.default_rng(0)
    n, size = 50, 24
    radius, centre = rng.uniform(3, 6, n), rng.uniform(7, 17, (n, 2))
    mask = shapes.coverage(np.full(n, index), centre, radius, size)
    assert mask.min() >= 0 and mask.max() <= 1 + 1e-6
    np.testing.assert_allclose(mask.sum((1, 2)), area * radius**2, rtol=0.03)
    x = (mask.sum(1) @ (np.arange(size) + 0.5)) / mask.sum((1, 2))
    y = (mask.sum(2) @ (np.arange(size) + 0.5)) / mask.sum((1, 2))
    below = radius / 3 if index == 2 else 0  # a triangle is heavier at its base
    np.testing.assert_allclose(x, centre[:, 0], atol=0.02)
    np.testing.assert_allclose(y, centre[:, 1] + below, atol=0.1)


@pytest.mark.parametrize("objects", [1, 2])
def test_motion_is_inside_apart_and_visible(objects):
    scene = shapes.scenes("train", objects)[:: 1 if objects == 1 else 13]
    steps = np.array([[shapes.DIRECTIONS[c.direction] for c in s] for s in scene])
    motion = shapes.draw_motion(np.random.default_rng(1), steps)
    centres, radius = motion.centres(16), motion.radius[:, :, None, None]
    assert (centres - radius > 0).all() and (centres + radius < 1).all()
    assert (np.abs(motion.displacement).max(-1) >= 0.25).all()
    assert (np.sign(motion.displacement) == steps).all()
    for i, j in itertools.combinations(range(objects), 2):
        gap = (
            np.abs(centres[:, i] - centres[:, j]).max(-1) - radius[:, i, :, 0] - radius[:, j, :, 0]
        )
        assert gap.min() > 0
    assert motion.radius.std() > 0 and np.abs(motion.displacement).sum(-1).std() > 0


def test_frames_move_and_the_border_is_black():
    video = shapes.render_clips([[c] for c in COMBINATIONS], size=16, num_frames=8)
    assert video.shape == (72, 8, 16, 16, 3) and video.dtype == np.uint8
    assert (np.abs(np.diff(video.astype(int), axis=1)).sum((2, 3, 4)) > 0).all()
    # Half a pixel of margin: the outermost ring is at most half covered.
    ring = np.concatenate([video[:, :, [0, -1]].ravel(), video[:, :, :, [0, -1]].ravel()])
    assert ring.max() <= 128
    for i, c in enumerate(COMBINATIONS):
        lit = np.array(shapes.COLORS[c.color]) > 0
        assert video[i][..., ~lit].max(initial=0) == 0 and video[i][..., lit].max() == 255


def test_the_same_seed_gives_the_same_bytes():
    scene = shapes.scenes("train")[:8]
    one, other, third = (
        shapes.render_clips(scene, size=16, num_frames=4, seed=seed) for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(one, other)
    assert (one != third).any()
    # Data sets prepared elsewhere are only comparable while this holds.
    means = [10.03, 11.24, 16.37, 14.27, 12.92, 16.44, 16.99, 6.67]
    np.testing.assert_allclose(one.mean((1, 2, 3, 4)), means, atol=0.01)


def test_turned_captions():
    assert shapes.turned("a red circle moving left") == "a red circle moving right"
    for caption in shapes.captions("train", 2)[:50]:
        assert shapes.turned(shapes.turned(caption)) == caption != shapes.turned(caption)
