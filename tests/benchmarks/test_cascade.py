"""The report of benchmarks.cascade."""

import numpy as np
import pytest

from benchmarks import cascade
from vdm_jax.pipelines import cascade as cascade_sampling


def test_videos_are_compared_clip_by_clip():
    rng = np.random.default_rng(0)
    reference = rng.integers(0, 170, (8, 2, 4, 4, 3), dtype=np.uint8)
    near = reference + np.arange(1, 9, dtype=np.uint8)[:, None, None, None, None]
    # Errors 10 times as large in each clip are 20 dB less, so the interval has no width.
    far = reference + 10 * (near - reference)
    row = cascade.compared({"psnr": near, "baseline psnr": far}, reference)
    assert row["psnr - baseline psnr"] == "+20.00 [+20.00, +20.00]"
    assert row["psnr"] - row["baseline psnr"] == pytest.approx(20)
    same = cascade.compared({"psnr": near, "one step": near}, reference)
    assert same["psnr - one step"] == "+0.00 [+0.00, +0.00]"


def test_rows_of_unlike_stages_keep_to_their_columns():
    rows = [
        {"stage": "ssr", "psnr": 30.25, "fvd": 550.0},
        {"stage": "tsr", "fvd": 22.9, "between": 1},
    ]
    assert cascade.table(rows).splitlines() == [
        "| stage | psnr | fvd | between |",
        "|---|---:|---:|---:|",
        "| ssr | 30.25 | 550 |  |",
        "| tsr |  | 22.9 | 1 |",
    ]


def test_noise_is_put_on_what_stages_refine_not_on_the_base():
    steps = cascade_sampling.load("imagen_video_tiny").steps
    assert cascade.refining(steps) == [step.name for step in steps[1:]]
