"""Clips of moving shapes on paper."""

import sys

import numpy as np

from benchmarks import on_paper
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.evaluation import clips


def test_what_is_black_is_paper_and_what_is_bright_stays():
    frame = np.array([[0, 0, 0], [255, 0, 0], [255, 255, 0], [0, 0, 51]], np.uint8)
    found = on_paper.on_paper(frame)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found[0], on_paper.PAPER)
    np.testing.assert_array_equal(found[1:3], frame[1:3])
    between = frame[3] + 0.8 * np.array(on_paper.PAPER)
    np.testing.assert_allclose(found[3], between, atol=0.5)


def test_files_hold_the_clips_and_their_captions(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["on_paper", f"--out={tmp_path}", "--clips=2"])
    on_paper.main()
    folder = VideoFolder(tmp_path, num_frames=32, image_size=16)
    assert len(folder) == 2
    rendered = clips.from_moving_shapes("16x16x32", "train", 2)
    for number in range(2):
        read = folder[number]
        assert read["caption"] == rendered.captions[number]
        off = read["video"].astype(int) - on_paper.on_paper(rendered.videos[number])
        assert np.abs(off).mean() < 8  # compression, and edges that are resized
