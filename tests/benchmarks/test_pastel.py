"""Clips of moving shapes in pastel."""

import sys

import numpy as np

from benchmarks import pastel
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.evaluation import clips


def test_colours_pale_and_black_stays():
    frame = np.array([[0, 0, 0], [255, 0, 0], [255, 255, 0], [0, 0, 50]], np.uint8)
    found = pastel.pastel(frame)
    assert found.dtype == np.uint8
    expected = [[0, 0, 0], [255, 128, 128], [255, 255, 128], [25, 25, 50]]
    np.testing.assert_array_equal(found, expected)


def test_files_hold_the_clips_and_their_captions(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["pastel", f"--out={tmp_path}", "--clips=2"])
    pastel.main()
    folder = VideoFolder(tmp_path, num_frames=32, image_size=16)
    assert len(folder) == 2
    rendered = clips.from_rendered("moving_shapes", "16x16x32", "train", 2)
    for number in range(2):
        read = folder[number]
        assert read["caption"] == rendered.captions[number]
        off = read["video"].astype(int) - pastel.pastel(rendered.videos[number])
        assert np.abs(off).mean() < 8  # compression, and edges that are resized
