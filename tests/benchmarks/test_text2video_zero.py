"""What the benchmark of Text2Video-Zero measures, on rendered scenes."""

import numpy as np
import pytest

from benchmarks import text2video_zero as benchmark
from vdm_jax.data.scenes import world
from vdm_jax.evaluation import scene_judge


@pytest.fixture(scope="module")
def scene():
    return world.draw_scene(0, "train", 3, num_objects=1, num_frames=8)


@pytest.fixture(scope="module")
def clip(scene):
    return world.render(scene, 64)


def test_a_rendered_clip_is_the_same_in_all_frames_and_moves_as_drawn(scene, clip):
    found = benchmark.measure(clip.video, scene.frame_captions[0])
    assert found.same and found.right
    drawn = 64 * (scene.centres[0, -1] - scene.centres[0, 0]) / 7
    np.testing.assert_allclose(found.motion, drawn, atol=0.1)
    assert np.abs(drawn).max() > 1


def test_another_object_in_one_frame_is_not_the_same(scene, clip):
    other = world.draw_scene(0, "train", 4, num_objects=1, num_frames=8)
    assert other.things != scene.things
    video = np.concatenate([clip.video[:7], world.render(other, 64).video[7:]])
    found = benchmark.measure(video, scene.frame_captions[0])
    assert not found.same and not found.right
    wrong = benchmark.measure(clip.video, other.frame_captions[0])
    assert wrong.same and not wrong.right


def test_noise_shows_nothing(scene):
    noise = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    found = benchmark.measure(noise, scene.frame_captions[0])
    assert not found.same and not found.right


def test_the_objects_of_a_rendered_clip_are_its_foreground(clip):
    found = scene_judge.foregrounds(clip.video[None])[0]
    truth = clip.mask[..., 0] > 0
    shared = (found & truth).sum() / (found | truth).sum()
    assert shared > 0.6
    with pytest.raises(ValueError, match=r"videos: clips \[8, 32, 32, 3\]: must be \[f, 64"):
        scene_judge.foregrounds(np.zeros((1, 8, 32, 32, 3), np.uint8))


def test_the_table_has_intervals():
    clips = [benchmark.Clip(True, i > 1, (-2.0 - 0.1 * i, 0.0), 1.0, 5.0) for i in range(8)] + [
        benchmark.Clip(False, False, (float("nan"),) * 2, float("nan"), 5.0)
    ]
    rows = {"both": {**benchmark.figures(clips), "seconds": 1.0}}
    found = rows["both"]
    assert found["n"] == 9 and found["seen"] == 8
    assert found["same"][0] == 8 / 9 and found["same"][1] < 8 / 9 < found["same"][2]
    low, high = found["motion_x"][1:]
    assert low < -2.35 < high
    assert "| both | 9 | 88.9% [" in benchmark.as_table(rows, (-2, 0))
    assert set(benchmark.variants((1, 0), 881, 941)) == {"both", "motion", "attention", "neither"}
    assert len(set(benchmark.captions(20))) == 20
