"""The figures of benchmarks.controlvideo."""

from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import controlvideo
from vdm_jax.data import controls


def options(**changes):
    return SimpleNamespace(**{"clips": 2, "control": "edges", **changes})


def test_a_task_follows_held_out_clips():
    task = controlvideo.make_task(options(), 5)
    assert task.clips.shape == task.controls.shape == (2, 5, 64, 64, 3)
    assert set(np.unique(task.controls)) == {0, 255}
    depth = controlvideo.make_task(options(control="depth"), 5)
    assert len(np.unique(depth.controls)) > 64
    assert task.prompts == depth.prompts and task.prompts[0] != task.prompts[1]


def test_edges_within_a_pixel_count_as_found():
    pytest.importorskip("cv2")
    square, moved, far = (np.zeros((2, 64, 64, 3), np.uint8) for _ in range(3))
    square[:, 20:40, 20:40], moved[:, 21:41, 20:40], far[:, 27:47, 28:48] = 255, 255, 255
    assert controlvideo.edge_f1(square, square) == 1
    assert controlvideo.edge_f1(square, moved) == 1
    assert controlvideo.edge_f1(square, far) < 0.3
    both = np.maximum(square, np.roll(square, 20, axis=2))  # edges that are too many
    assert 0.4 < controlvideo.edge_f1(square, both) < 0.9
    assert controlvideo.edge_f1(square, np.zeros_like(square)) == 0
    assert controls.canny(square).any()


def test_rendered_clips_have_one_object_and_like_ends():
    task = controlvideo.make_task(options(), 4)
    assert controlvideo._ends(task.clips)["both ends alike"].startswith("100.0%")
    mixed = task.clips.copy()
    mixed[0, -1] = task.clips[1, -1]
    assert controlvideo._ends(mixed)["both ends alike"].startswith("50.0%")
    row = controlvideo._row("clips", task, mixed, 0.0)
    assert row["all frames alike"].startswith("50.0%")
