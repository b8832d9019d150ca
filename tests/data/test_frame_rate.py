"""The frame rate of a model's videos, for every way in which a configuration says it."""

import numpy as np
import pytest

from vdm_jax import config as config_lib
from vdm_jax import pipelines
from vdm_jax.data import frame_rate, pipeline, video_io
from vdm_jax.pipelines import model as pretrained
from vdm_jax.systems import vdm


def configured(stage=None, **data):
    config = vdm.default_config()
    with config.unlocked():
        config.data.update(data)
        if stage is not None:
            config.stage = {"shape": (), "frame_strides": (), "data_fps": 0.0, **stage}
    return config


@pytest.mark.parametrize(
    ("data", "stage", "expected"),
    [
        ({"name": "video_folder", "fps": 24.0}, None, 24),
        ({"name": "video_folder", "fps": 24.0, "frame_stride": 3}, None, 8),
        ({"name": "video_folder", "source_fps": 25.0}, None, 25),
        ({"name": "video_folder", "source_fps": 25.0, "frame_stride": 2}, None, 12.5),
        ({"name": "video_folder", "source_fps": 25.0, "fps": 10.0}, None, 10),
        ({"name": "ucf101", "frame_stride": 5}, None, 5),
        ({"name": "moving_shapes"}, None, 8),
        ({"name": "video_folder"}, None, 0),
        ({"name": "moving_mnist"}, None, 0),
        # Stages of a cascade take every fourth frame, or every second one.
        ({"num_frames": 32}, {"shape": (8, 8, 8), "data_fps": 24.0}, 6),
        ({"num_frames": 32}, {"shape": (32, 8, 8), "data_fps": 24.0}, 24),
        (
            {"num_frames": 32},
            {"shape": (8, 8, 8), "data_fps": 24.0, "frame_strides": (2, 4)},
            12,
        ),
        (
            {"name": "video_folder", "num_frames": 16, "source_fps": 30.0},
            {"shape": (8, 8, 8)},
            15,
        ),
    ],
)
def test_a_configuration_says_its_rate(data, stage, expected):
    config = configured(stage, **data)
    assert frame_rate.known(config) == expected
    assert frame_rate.playback(config) == (expected or 8)
    assert bool(frame_rate.note(config)) == (expected == 0)


def test_a_configuration_of_before_has_a_rate_too():
    config = configured(name="video_folder")
    with config.unlocked():
        del config.data.source_fps
    assert frame_rate.playback(config) == 8
    now = configured(name="video_folder", source_fps=25.0)
    assert not config_lib.resume_differences(config, now)  # a run of before goes on


def test_training_records_the_files_own_rate(tmp_path):
    for name, fps in (("a", 24), ("b", 24), ("c", 50)):
        clip = np.zeros((9, 16, 16, 3), np.uint8)
        video_io.write_mp4(tmp_path / f"{name}.mp4", clip, fps=fps, min_size=16)
    config = configured(
        name="video_folder", data_dir=str(tmp_path), num_frames=3, image_size=16, frame_stride=2
    ).lock()
    source = pipeline.make_source(config.data)
    recorded = frame_rate.recorded(config, source)
    assert recorded.data.source_fps == 24 and recorded.is_locked
    assert frame_rate.known(recorded) == 12 and config.data.source_fps == 0
    saved = config_lib.from_json(config_lib.to_json(recorded))
    assert frame_rate.known(saved) == 12
    fixed = configured(name="video_folder", fps=6.0)
    assert frame_rate.recorded(fixed, source) is fixed


def test_shipped_models_know_their_rate():
    assert pretrained.load("moving_shapes").fps == 8
    cascade = pipelines.load("imagen_video_tiny")
    assert cascade.fps == 24
    rates = [frame_rate.known(pretrained.read_config(step.source)) for step in cascade.steps]
    assert rates == sorted(rates) and rates[0] < 24


@pytest.mark.parametrize(
    ("count", "fps", "rate", "expected"),
    [
        (9, 24, 8, [0, 3, 6]),
        (4, 8, 24, [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]),
        (6, 30, 24, [0, 1, 2, 3, 5]),
        (5, 29.97, 29.97, [0, 1, 2, 3, 4]),
        (1, 24, 8, [0]),
    ],
)
def test_videos_are_brought_to_a_rate_by_time(count, fps, rate, expected):
    assert frame_rate.resampled(count, fps, rate).tolist() == expected
    with pytest.raises(ValueError, match="must be above 0"):
        frame_rate.resampled(count, 0, rate)


def test_rates_that_differ_by_rounding_are_equal():
    assert frame_rate.equal(24, 23 / 2.88, 8)  # a GIF's times, in hundredths of a second
    assert frame_rate.equal(2, 1 / 0.13, 8)
    assert frame_rate.equal(24, 23.976, 24) and not frame_rate.equal(24, 24, 25)
    assert not frame_rate.equal(2, 8, 4) and frame_rate.equal(1, 8, 4)
