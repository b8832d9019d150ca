import math

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from vdm_jax.diffusion import losses, predictions, schedules
from vdm_jax.diffusion.process import Process, make_process
from vdm_jax.diffusion.schedules import alpha_sigma

SHAPE = (4, 2, 3, 3, 1)
X = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, SHAPE), jnp.float32)


def test_loss_of_the_true_target_is_zero_and_of_another_is_not():
    schedule = schedules.CosineSchedule(logsnr_min=-6.0, logsnr_max=6.0)

    @jax.jit
    def run(offset):
        def one(kind):
            def oracle(z, logsnr):  # knows x, so it knows the noise too
                alpha, sigma = (c.reshape(-1, 1, 1, 1, 1) for c in alpha_sigma(logsnr))
                return offset + predictions.target(kind, X, (z - alpha * X) / sigma, logsnr)

            return Process(prediction=kind, schedule=schedule).loss(jax.random.key(0), oracle, X)

        return {kind: one(kind) for kind in predictions.KINDS}

    for kind, (loss, metrics) in run(0.0).items():
        assert loss.shape == (4,)
        assert loss.max() < 1e-8, kind
        assert set(metrics) == {"x_mse", "eps_mse"}
        assert max(metrics.values()) < 1e-8, kind
    for kind, (loss, metrics) in run(0.5).items():
        assert loss.min() > 1e-3, kind
        assert min(metrics.values()) > 1e-3, kind


def test_loss_is_the_named_one_at_the_sampled_noise():
    process = Process(prediction="eps", loss_name="min_snr_gamma", min_snr_gamma=2.0)
    seen = {}

    def network(z, logsnr):
        seen.update(z=z, logsnr=logsnr)
        return jnp.zeros_like(z, jnp.bfloat16)

    loss, metrics = process.loss(jax.random.key(3), network, X)
    assert loss.dtype == jnp.float32
    alpha, sigma = (np.asarray(c).reshape(-1, 1, 1, 1, 1) for c in alpha_sigma(seen["logsnr"]))
    eps = (np.asarray(seen["z"]) - alpha * np.asarray(X)) / sigma
    snr = np.exp(np.asarray(seen["logsnr"], np.float64))
    squared = np.square(eps).reshape(4, -1).mean(1)  # the error of ε̂ = 0
    np.testing.assert_allclose(loss, np.minimum(snr, 2.0) / snr * squared, rtol=1e-3)
    np.testing.assert_allclose(metrics["eps_mse"], squared.mean(), rtol=1e-3)


def test_weights_count_squared_errors_of_examples_and_of_frames():
    weights = jnp.asarray(np.random.default_rng(2).uniform(0, 3, (4, 2)), jnp.float32)
    levels = schedules.CosineSchedule(logsnr_min=-4.0, logsnr_max=4.0)

    def loss(process, x, weight):
        weight_fn = None if weight is None else lambda logsnr: weight
        return process.loss(jax.random.key(1), lambda z, logsnr: jnp.sin(z), x, weight_fn)

    for name in losses.LOSSES:
        process = Process(loss_name=name, schedule=levels)
        plain, metrics = loss(process, X, None)
        weighed, told = loss(process, X, weights[:, 0])
        np.testing.assert_allclose(weighed, weights[:, 0] * plain, rtol=1e-3, err_msg=name)
        assert told == metrics  # of the errors as they are
    # |v̂ − v|² of one frame at a time, the other's weight 0.
    one, other = (loss(Process(schedule=levels), X, jnp.eye(2)[None, k] * weights) for k in (0, 1))
    both, _ = loss(Process(schedule=levels), X, weights)
    assert min(one[0].min(), other[0].min()) > 1e-3
    np.testing.assert_allclose(one[0] + other[0], both, rtol=1e-5)


def test_add_noise_has_the_stated_signal_and_noise():
    process = Process()
    logsnr = jnp.array([-jnp.inf, -2.0, 2.0, jnp.inf])
    eps = jnp.asarray(np.random.default_rng(1).normal(size=SHAPE), jnp.float32)
    z = process.add_noise(X, eps, logsnr)
    np.testing.assert_array_equal(z[0], eps[0])
    np.testing.assert_array_equal(z[3], X[3])
    snr = math.exp(-2.0)
    expected = math.sqrt(snr / (1 + snr)) * X[1] + math.sqrt(1 / (1 + snr)) * eps[1]
    np.testing.assert_allclose(z[1], expected, atol=1e-6)


def test_noise_levels_follow_the_schedule_one_in_each_stratum():
    process = Process()
    logsnr = process.sample_logsnr(jax.random.key(0), 64)
    strata = np.floor(np.sort(process.schedule.inverse(logsnr)) * 64 + 1e-4)
    np.testing.assert_array_equal(strata, np.arange(64))


def test_training_distribution_replaces_the_schedule_in_training_only():
    process = make_process(
        {"schedule": "edm", "training": "log_normal", "P_mean": 1.0, "P_std": 1.6, "loss": "edm"}
    )
    logsnr = process.sample_logsnr(jax.random.key(0), 4096)
    np.testing.assert_allclose(-0.5 * logsnr.mean(), 1.0, atol=0.02)
    np.testing.assert_allclose(0.5 * logsnr.std(), 1.6, rtol=0.02)
    assert process.schedule == schedules.EDMSchedule()


def test_denoiser_passes_everything_on():
    process = Process(prediction="x")
    logsnr = jnp.array([-1.0, 0.0, 1.0, 2.0])

    def network(z, logsnr, cond):
        return z * cond + logsnr.reshape(-1, 1, 1, 1, 1)

    prediction = process.denoiser(network)(X, logsnr, 0.5)
    np.testing.assert_allclose(prediction.x, 0.5 * X + logsnr.reshape(-1, 1, 1, 1, 1), atol=1e-6)
    np.testing.assert_array_equal(prediction.z, X)


def test_make_process_from_a_configuration():
    config = ml_collections.ConfigDict(
        {
            "schedule": "cosine",
            "prediction": "eps",
            "loss": "truncated_snr",
            "logsnr_min": -15.0,
            "logsnr_max": 15.0,
            "logsnr_shift": schedules.resolution_shift(64, 128),
            "min_snr_gamma": 5.0,
        }
    )
    assert make_process(config) == Process(
        schedule=schedules.CosineSchedule(
            logsnr_min=-15.0, logsnr_max=15.0, shift=-2 * math.log(2)
        ),
        prediction="eps",
        loss_name="truncated_snr",
    )
    assert make_process({}) == Process()
    assert hash(make_process({})) == hash(Process())  # usable as a static argument


def test_one_field_shifts_both_schedules_by_the_same_log_snr():
    t = jnp.linspace(0.2, 0.8, 7)
    for schedule in ("cosine", "rectified_flow"):
        plain = make_process({"schedule": schedule}).schedule(t)
        shifted = make_process({"schedule": schedule, "logsnr_shift": -1.5}).schedule(t)
        np.testing.assert_allclose(shifted - plain, -1.5, atol=2e-3, err_msg=schedule)


def test_configuration_errors_name_the_field():
    with pytest.raises(ValueError, match=r"unknown field shedule; allowed: .*schedule"):
        make_process({"shedule": "cosine"})
    with pytest.raises(ValueError, match=r"process.schedule='cos'.*cosine, linear_beta"):
        make_process({"schedule": "cos"})
    with pytest.raises(ValueError, match=r"process.training='uniform'.*schedule, log_normal"):
        make_process({"training": "uniform"})
    with pytest.raises(ValueError, match="prediction='noise'"):
        make_process({"prediction": "noise"})
    with pytest.raises(ValueError, match="loss='mse'"):
        make_process({"loss": "mse"})
    with pytest.raises(ValueError, match=r"process.logsnr_min=-15.0 has no effect.*'linear_beta'"):
        make_process({"schedule": "linear_beta", "logsnr_min": -15.0})
    # Fields of other schedules at their defaults do not disturb: configurations list them all.
    assert make_process({"schedule": "linear_beta", "logsnr_min": -20.0, "logsnr_shift": 0.0})
