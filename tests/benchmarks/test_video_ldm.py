"""The claims of Video LDM: the figures of clips whose truth is known."""

import numpy as np
import pytest

from benchmarks import video_ldm as benchmark
from vdm_jax.data.scenes import builder, world
from vdm_jax.evaluation import fidelity


@pytest.fixture(scope="module")
def clip():
    config = {one.name: one for one in builder.Scenes.BUILDER_CONFIGS}[benchmark.LONG]
    return world.render(config.scene("held_out", 0), 64).video[None]


def test_key_frames_become_all_frames_by_both_factors(clip):
    whole = benchmark.FACTOR ** len(benchmark.RATES)
    keys = clip[:, ::whole]
    assert clip.shape[1] == 65 and keys.shape[1] == 5
    between = benchmark.blended(keys, whole)
    assert between.shape == clip.shape
    np.testing.assert_array_equal(between[:, ::whole], keys)
    middle = (keys[:, 0].astype(int) + keys[:, 1]) / 2
    assert np.abs(between[:, whole // 2] - middle).max() <= 0.5


def test_errors_where_pixels_change_are_those_of_the_object(clip):
    still, moving = np.zeros((2, 1, 3, 4, 4, 3), np.uint8)
    moving[0, 1, :2] = 100
    made = moving.copy()
    made[0, :, 3] = 50  # where nothing changes
    assert benchmark.psnr_of_changes(made, moving)[0] > 70
    made[0, 0, 0] = 255
    wanted = 10 * np.log10(255**2 / (255**2 / 6))
    assert benchmark.psnr_of_changes(made, moving)[0] == pytest.approx(wanted)
    assert np.isnan(benchmark.psnr_of_changes(still, still)[0])
    blended = benchmark.blended(clip[:, ::16], 16)
    overall = fidelity.psnr(blended, clip).clips[0]
    assert benchmark.psnr_of_changes(blended, clip)[0] < overall


def test_only_errors_that_change_are_flicker(clip):
    wrong = np.clip(clip, 0, 245) + np.uint8(10)
    truth = np.clip(clip, 0, 245)
    assert benchmark.flicker(wrong, truth)[0] == 0
    wrong[:, ::2] -= 10  # every other frame is right
    assert benchmark.flicker(wrong, truth)[0] == pytest.approx(10)


def test_differences_are_clip_by_clip():
    rng = np.random.default_rng(0)
    base = rng.normal(size=20)
    base[3] = np.nan
    rows = benchmark.compared({"a": {"error": base}, "b": {"error": base + 1.0}}, "a")
    assert rows[1]["error, less that of a"] == "1.000 [1.000, 1.000]"
    assert "error, less that of a" not in rows[0]
