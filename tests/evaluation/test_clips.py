"""Clips of folders, archives and data sets: the right frames, by the right names."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from vdm_jax.data import video_io
from vdm_jax.evaluation import clips

GREY = 30  # a frame more


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Two videos of 8 frames, as files and as an archive. Frame k has the grey value k * GREY."""
    root = tmp_path_factory.mktemp("videos")
    video = np.zeros((8, 16, 16, 3), np.uint8) + np.arange(8, dtype=np.uint8)[:, None, None, None]
    for name in ("a", "b"):
        video_io.write_mp4(root / "files" / f"{name}.mp4", video * GREY, fps=8, min_size=16)
    np.save(root / "archive.npy", np.stack([video * GREY] * 2))
    return root


def shown(found: clips.Clips) -> list:
    """The number of each frame of each clip, by its grey value."""
    return np.round(found.videos.mean((2, 3, 4)) / GREY).astype(int).tolist()


@pytest.mark.parametrize("source", ["files", "archive.npy"])
def test_a_stride_takes_every_second_frame(videos, source):
    cut = {"num_frames": 3, "size": 16, "count": None, "seed": 0}
    # A file gives as many clips as fit into it.
    assert shown(clips.from_path(videos / source, stride=2, **cut))[0] == [0, 2, 4]
    assert shown(clips.from_path(videos / source, stride=1, **cut))[0] == [0, 1, 2]


def test_clips_of_a_folder_that_a_configuration_names(videos):
    data = {"name": "video_folder", "data_dir": str(videos / "files"), "split": "test"}
    data |= {"num_frames": 4, "image_size": 16, "frame_stride": 2, "fps": 0.0}
    found = clips.from_data(ConfigDict(data), None, seed=0)
    assert found.description == {"data": "video_folder", "split": "test", "resize": clips.FILTER}
    assert list(found.names) == ["a, clip 1", "b, clip 1"] and found.fps == (8.0, 8.0)
    assert shown(found) == [[0, 2, 4, 6]] * 2
