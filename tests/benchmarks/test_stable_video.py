"""The claims of Stable Video Diffusion: figures of clips whose truth is known, and of models that
stand for trained ones."""

import dataclasses
import types

import jax
import numpy as np
import pytest

from benchmarks import stable_video as benchmark
from vdm_jax import config as config_lib
from vdm_jax.data.scenes import world
from vdm_jax.pipelines import editing
from vdm_jax.stage.view import View

CLIP = (6, 64, 64, 3)


class Encoder:
    null_text = ""

    def encode(self, texts):
        return {"token_mask": np.array([[bool(text)] for text in texts])}


@dataclasses.dataclass
class Model:
    """Its loss is `level` and noise; its samples are the data's, slower for a smaller bucket."""

    level: float = 1.0

    config = config_lib.load_config("stable_video/tiny/image_to_video")
    params = frozen = None

    @property
    def stage(self):
        view = View(shape=CLIP, data_shape=(16, *CLIP[1:]), data_fps=8.0, frame_strides=(1, 2, 3))
        find = {"find": lambda kind: types.SimpleNamespace(encoder=Encoder())}
        return types.SimpleNamespace(view=view, video_shape=CLIP, loss=self.loss, **find)

    def loss(self, params, batch, key, frozen):
        assert batch["video"].shape == (1, *CLIP) and batch["fps"].shape == (1,)
        right = batch["token_mask"].all() & ~batch["null_token_mask"].any()
        return right * self.level + 0.1 * jax.random.normal(key), {}

    def sample(self, key, *, prompts, steps, fps):
        return benchmark.held_out(self, len(prompts), fps).videos

    def sampler(self, **settings):
        return {"model": self, **settings}


def animate(sampler, params, key, pictures, captions):
    stride = round(8 / sampler["fps"]) if sampler["motion_bucket"] > 50 else 1
    slow = benchmark.held_out(sampler["model"], len(captions), 8 / stride).videos
    np.testing.assert_array_equal(slow[:, 0], pictures)
    return slow


def test_ranks_of_settings_and_figures():
    values = np.array([[1.0, 2.0, 5.0], [3.0, 2.0, 0.0], [2.0, 2.0, 2.0], [1.0, 3.0, 2.0]])
    found = benchmark.rank_correlations([8.0, 10.0, 30.0], values)
    np.testing.assert_allclose(found, [1.0, -1.0, 0.0, 0.5])


def test_a_sweep_counts_clips_that_all_settings_show():
    one = np.array([[1.0, 2.0], [3.0, np.nan], [2.0, 4.0]])
    found = benchmark.sweep({30.0: one, 80.0: one + 1, 200.0: one + 3})
    assert found["settings"] == [30.0, 80.0, 200.0]
    assert (found["change"]["n"], found["speed"]["n"]) == (3, 2)
    assert [mean[0] for mean in found["speed"]["means"]] == [3.0, 4.0, 6.0]
    assert found["change"]["steps"] == [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    assert found["speed"]["correlation"] == [1.0, 1.0, 1.0]
    rows = dict.fromkeys(("bucket", "fps", "data"), found)
    table = benchmark.motion_table({**rows, "at": {"fps": 4.0, "bucket": 80.0}})
    assert "| Motion bucket, at 4 frames a second | 30 | 80 | 200 | correlation |" in table
    assert "| speed, pixels a frame, n = 2 | 3.00 [2.00, 4.00] |" in table


def test_motion_of_rendered_clips_is_as_drawn():
    scene = world.draw_scene(0, "train", 0, num_objects=1, num_frames=16)
    clip = world.render(scene, 64).video
    ((slow, speed), (fast, twice)) = benchmark.measures(np.stack([clip[:5], clip[:10:2]]))
    drawn = 64 * np.linalg.norm(scene.centres[0, 1] - scene.centres[0, 0])
    assert speed == pytest.approx(drawn, abs=0.2) and twice == pytest.approx(2 * drawn, abs=0.2)
    assert 0 < slow < fast


def test_held_out_clips_have_the_models_frame_rates():
    data = benchmark.held_out(Model(), 4)
    np.testing.assert_allclose(data.fps, [8.0, 4.0, 8 / 3, 8.0])
    assert data.videos.shape == (4, *CLIP)
    whole = benchmark.held_out(Model(), 4, 8 / 3)
    np.testing.assert_array_equal(whole.videos[2], data.videos[2])
    np.testing.assert_array_equal(whole.videos[0, :2], data.videos[0, [0, 3]])


def test_two_models_are_compared_on_the_same_clips_and_noise(tmp_path):
    models = {"image model": Model(1.0), "random parameters": Model(2.0)}
    found = benchmark.pretraining(models, 3, 2, None, tmp_path)
    np.testing.assert_allclose(found["difference"], -1.0, atol=1e-6)
    assert found["ratio"][0] == pytest.approx(0.5, abs=0.1) and found["n"] == 3
    # At the lowest frame rate six frames last as long as the data's clips, and are read alike.
    assert found["rows"]["data"]["shares"]["all"][0] == 1.0
    assert found["rows"]["image model"]["shares"]["all"][0] == 1.0
    assert "| random parameters | " in benchmark.pretraining_table(found)
    sheets = {path.name for path in tmp_path.iterdir()}
    assert sheets == {"image_model.png", "random_parameters.png"}


def test_motion_of_a_model_is_measured_by_its_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(editing, "animate", animate)
    found = benchmark.motion(Model(), [200.0, 30.0, 80.0], 3, 2, tmp_path)
    assert found["at"] == {"fps": 4.0, "bucket": 80.0}
    assert found["bucket"]["settings"] == [30.0, 80.0, 200.0]
    assert found["fps"]["settings"] == pytest.approx([8.0, 4.0, 8 / 3])
    # All but the smallest bucket move as the data.
    slower, equal = found["bucket"]["speed"]["steps"]
    assert slower[1] > 0 and equal == [0.0, 0.0, 0.0]
    assert found["fps"]["speed"]["correlation"] == [-1.0, -1.0, -1.0]
    assert found["fps"]["speed"] == found["data"]["speed"]
    assert "from the setting before" in benchmark.motion_table(found)
    assert (tmp_path / "motion.png").exists()
