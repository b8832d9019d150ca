"""What a model was trained on bounds what it is asked."""

import dataclasses
import math
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_stage
from tests.test_wiring import light, make_config
from vdm_jax import systems
from vdm_jax.stage import sampler as sampling
from vdm_jax.stage.conditions.scalar import FrameRate, GuidanceScale
from vdm_jax.stage.conditions.video import LowResVideo
from vdm_jax.stage.view import View
from vdm_jax.systems import distillation

KEY = jax.random.key(0)


def ssr(**stage):
    fields = [(f"stage.{name}", value) for name, value in stage.items()]
    return light(systems.build(make_config("imagen_video", fields)))


def sampler(stage, **fields):
    return sampling.Sampler.from_config(stage, {"guidance": 1.0, **fields}, steps=2)


def begun(stage, n=1, **settings):
    low = np.full((n, *stage.find(LowResVideo).low_res_shape), 255, np.uint8)
    cond = jax.tree.map(jnp.asarray, stage.encode(["red"] * n, inputs={"low_res": low}))
    return stage.begin(cond, n, KEY, settings)


def test_without_augmentation_the_network_takes_the_least_noise_level_of_training():
    stage = ssr(max_augmentation=0.5)
    low_res = stage.find(LowResVideo)
    lowest, highest = low_res.trained
    assert highest == pytest.approx(float(stage.process.schedule(jnp.array(0.0))))
    assert lowest == pytest.approx(float(stage.process.schedule(jnp.array(0.5))))
    cond = begun(stage, n=4)
    np.testing.assert_allclose(cond["low_res_logsnr"], highest, rtol=1e-6)
    np.testing.assert_allclose(cond["low_res"], 1.0, rtol=1e-6)  # and nothing is added
    noisy = begun(stage, n=4, augmentation=math.exp(lowest))
    np.testing.assert_allclose(noisy["low_res_logsnr"], lowest, rtol=1e-5)
    sigma = math.sqrt(1 / (1 + math.exp(lowest)))
    noise = np.asarray(noisy["low_res"]) - math.sqrt(1 - sigma**2)
    assert np.std(noise) == pytest.approx(sigma, rel=0.05)
    drawn = [
        low_res.example(example, jax.random.key(seed))["low_res_logsnr"]
        for seed, example in enumerate([_example(stage)] * 20)
    ]
    assert lowest - 1e-3 <= np.min(drawn) and np.max(drawn) <= highest + 1e-3


def test_a_stage_that_is_trained_without_noise_learns_of_clean_videos():
    stage = ssr(max_augmentation=0.0)
    low_res = stage.find(LowResVideo)
    cond = low_res.example(_example(stage), KEY)
    np.testing.assert_array_equal(cond["low_res"], 0.0)
    np.testing.assert_allclose(cond["low_res_logsnr"], low_res.trained[1], rtol=1e-6)
    assert low_res.trained[0] == low_res.trained[1]


def _example(stage):
    from vdm_jax.stage.protocols import Example

    clip = jnp.zeros((4, *stage.video_shape))
    return Example(batch={}, clip=clip, images=None, fps=jnp.ones(4))


def test_an_augmentation_outside_of_training_is_refused():
    stage = ssr(max_augmentation=0.5)
    lowest, highest = (math.exp(level) for level in stage.find(LowResVideo).trained)
    for allowed in (0.0, lowest, highest, math.sqrt(lowest * highest)):
        sampler(stage, augmentation=allowed)
    for refused in (lowest / 2, highest * 2):
        with pytest.raises(ValueError, match=r"augmentation = .* trained with α²/σ² from"):
            sampler(stage, augmentation=refused)


def test_a_frame_rate_outside_of_training_is_refused():
    several = ssr(shape=(4, 16, 16), low_res=(4, 8, 8), frame_strides=(1, 2), data_fps=24.0)
    for fps in (24.0, 12.0):
        sampler(several, fps=fps)
    with pytest.raises(ValueError, match="fps = 8: this model was trained with 24, 12 frames"):
        sampler(several, fps=8.0)
    with pytest.raises(ValueError, match="was trained with 6 frames a second"):
        sampler(ssr(data_fps=6.0), fps=24.0)
    # Data of an unknown rate: any is taken.
    assert View(shape=(4, 8, 8, 3)).rates == ()
    FrameRate(fps=0.0).check({"fps": 24.0})


def test_a_guidance_scale_that_was_not_distilled_is_refused():
    teacher, ladder = make_config("vdm"), distillation.default_config()
    this = distillation.rounds(ladder.distill)[0]
    ladder.distill.guidance_max = 4.0
    config = distillation.round_config(teacher, ladder, this, "somewhere", "sha256:0")
    student = light(systems.build(config))
    assert student.find(GuidanceScale).trained == (1.0, 4.0)
    for scale in (1.0, 2.5, 4.0):
        sampler(student, guidance=scale)
    for scale in (0.0, 4.5):
        with pytest.raises(ValueError, match="this model was distilled for guidance from 1 to 4"):
            sampler(student, guidance=scale)
    narrow = dataclasses.replace(student, conditions=(GuidanceScale(trained=(2.0, 3.0)),))
    sampler(narrow, guidance=2.0)
    with pytest.raises(ValueError, match="guidance = 1: .* from 2 to 3"):  # every second step
        sampler(narrow, guidance=2.0, oscillate_after=1)


def test_more_frames_than_in_training_are_told():
    stage = tiny_stage.STAGE
    frames = stage.video_shape[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sampler(stage)
        sampler(stage, num_frames=2 * frames, window=frames, window_overlap=1)
    with pytest.warns(UserWarning, match=f"num_frames = {2 * frames}: .* trained with {frames}"):
        sampler(stage, num_frames=2 * frames)
    with pytest.warns(UserWarning, match="extrapolation"):
        sampler(stage, num_frames=3 * frames, window=2 * frames)
