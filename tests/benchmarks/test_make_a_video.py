"""The claims of Make-A-Video: the figures of clips whose truth is known, and of a whole cascade."""

import numpy as np
import pytest

import vdm_jax
from benchmarks import make_a_video as benchmark
from tests import cascades
from tests.systems import test_make_a_video as tiny
from vdm_jax.data.scenes import backgrounds, world
from vdm_jax.weights import fetch

SKIP = 5


@pytest.fixture(scope="module")
def scenes():
    return [world.draw_scene(0, "train", i, num_objects=1, num_frames=16) for i in range(4)]


@pytest.fixture(scope="module")
def clips(scenes):
    return np.stack([world.render(scene, 64).video for scene in scenes])


def test_the_motion_of_rendered_clips_is_as_drawn(scenes, clips):
    for scene, clip in zip(scenes, clips, strict=True):
        speed, unsteady = benchmark.motion(clip[::SKIP], SKIP)
        drawn = 64 * np.linalg.norm(scene.centres[0, -1] - scene.centres[0, 0]) / 15
        assert speed == pytest.approx(drawn, abs=0.1) and unsteady < 0.5
    # Frames in another order are no steady motion, and a background alone shows none.
    assert benchmark.motion(clips[0, [0, 15, 0, 15]], SKIP)[1] > 2
    _, ground = backgrounds.draw("meadow", np.random.default_rng(0), 64)
    empty = np.broadcast_to(ground.astype(np.uint8), (4, 64, 64, 3))
    assert np.isnan(benchmark.motion(empty, SKIP)).all()


def test_distances_of_distributions_equal_their_definition():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(400, 1))
    assert benchmark.wasserstein(one, one[::-1]) == pytest.approx(0, abs=1e-12)
    assert benchmark.wasserstein(one, one + 1.5) == pytest.approx(1.5, rel=1e-6)
    assert benchmark.wasserstein(np.zeros((5, 1)), np.array([[0.0], [4.0]])) == pytest.approx(
        2.0, rel=0.02
    )


def test_captions_and_motion_of_the_data_itself(scenes, clips):
    captions = [scene.frame_captions[0] for scene in scenes]
    (found,) = benchmark.text_figures({"data": clips}, captions).values()
    assert all(found[name][0] == 1 for name in ("object", "place", "background", "all"))
    wrong = benchmark.text_figures({"data": clips[::-1]}, captions)["data"]
    assert wrong["all"][0] < 1
    moves = benchmark.motion_figures({"data": clips[:, ::SKIP], "model": clips[:, ::SKIP]}, SKIP)
    assert moves["model"]["distance"][0] == 0 and moves["data"]["seen"] == 4
    assert "distance" not in moves["data"]
    coarse = benchmark.coarsened(clips.repeat(4, axis=2).repeat(4, axis=3))
    np.testing.assert_array_equal(coarse, clips)


def test_a_whole_cascade_is_measured(tmp_path, monkeypatch):
    """With random parameters: no figure means anything, and each is there or said to be missing."""
    monkeypatch.setattr(fetch, "CACHE", tmp_path / "cache")
    tiny.write_parts(tmp_path, 64)
    # Attention among the pixels of 256 x 256 would take most of the time.
    configs = tiny.make_configs(tmp_path, 64, refiner=cascades.LIGHT)
    cascade = tiny.write_cascade(tmp_path / "cascade", configs)
    image = vdm_jax.load(tmp_path / "image").changed({"data.image_size": 64})
    image = image.changed({"data.config": "64x64x16", "sample.steps": 2})
    figures, videos, captions = benchmark.measure(cascade, image, 2, 2, tmp_path / "out")
    assert videos.shape == (2, tiny.FRAMES, 64, 64, 3) and len(captions) == 2
    assert figures["noise"]["n"] <= 2 and figures["motion"]["data"]["seen"] == 2
    for row in figures["text"].values():
        assert all(low <= share <= high for share, low, high in row.values())
    table = benchmark.as_table(figures)
    for head in ("| stage, n = 2 |", "| image model |", "| independent - shared |"):
        assert head in table
