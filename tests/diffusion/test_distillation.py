"""Targets of distillation against the published formulas and on Gaussian data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import distillation, losses
from vdm_jax.diffusion.predictions import to_prediction
from vdm_jax.diffusion.samplers import logsnr_grid
from vdm_jax.diffusion.schedules import CosineSchedule, alpha_sigma

VARIANCES = np.array([0.02, 0.3, 1.0, 2.0])
MEAN = np.array([0.5, -0.3, 0.0, 1.0])
STEPS = 4


def gaussian(z, logsnr, cond):
    """The best denoiser of independent Gaussians, bent so that x̂ is not linear in z."""
    alpha, sigma = (c[:, None] for c in alpha_sigma(logsnr))
    gain = alpha * VARIANCES / (alpha**2 * VARIANCES + sigma**2)
    x = MEAN + gain * (z - alpha * MEAN) + 0.1 * jnp.sin(z) * sigma
    # As v, which is exact everywhere.
    return to_prediction("v", (alpha * z - x) / jnp.maximum(sigma, 1e-9), z, logsnr)


@pytest.fixture(scope="module")
def steps():
    """λ_t, λ_mid, λ_s of every step of a grid of `STEPS`, and z at λ_t."""
    grid = np.asarray(logsnr_grid(CosineSchedule(), 2 * STEPS))
    z = np.random.default_rng(0).normal(size=(STEPS, len(VARIANCES)))
    arrays = (z, grid[0:-1:2], grid[1::2], grid[2::2])
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


def float64(logsnr):
    logsnr = np.asarray(logsnr, np.float64)[:, None]
    return np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))


def ddim(x, z, logsnr_t, logsnr_s):
    (alpha_t, sigma_t), (alpha_s, sigma_s) = float64(logsnr_t), float64(logsnr_s)
    return alpha_s * x + sigma_s / sigma_t * (z - alpha_t * x)


def test_one_step_with_the_two_step_target_ends_where_two_steps_end(steps):
    z, *logsnrs = steps
    target = jax.jit(distillation.two_step_target, static_argnums=0)(gaussian, z, *logsnrs, None)
    with np.errstate(over="ignore"):
        t, mid, s = (np.asarray(logsnr, np.float64) for logsnr in logsnrs)
        first = np.asarray(gaussian(z, logsnrs[0], None).x, np.float64)
        z_mid = ddim(first, np.asarray(z, np.float64), t, mid)
        second = gaussian(jnp.asarray(z_mid, jnp.float32), logsnrs[1], None).x
        z_s = ddim(np.asarray(second, np.float64), z_mid, mid, s)
        np.testing.assert_allclose(ddim(target, z, t, s), z_s, atol=1e-5)
        # Salimans & Ho 2022, algorithm 2, as it is printed.
        (alpha_t, sigma_t), (alpha_s, sigma_s) = float64(t), float64(s)
    ratio = sigma_s / sigma_t
    published = (z_s - ratio * np.asarray(z, np.float64)) / (alpha_s - ratio * alpha_t)
    np.testing.assert_allclose(target, published, atol=1e-5)
    # The last step ends at clean data: the target is the teacher's x̂ at the middle.
    assert np.isposinf(logsnrs[2][-1])
    np.testing.assert_allclose(target[-1], second[-1], atol=1e-6)


def test_the_consistency_target_is_one_teachers_step_nearer(steps):
    z, t, _, s = steps

    def student(z, logsnr, cond):
        return to_prediction("v", cond * jnp.cos(z), z, logsnr)

    def target(cond):
        return distillation.consistency_target(gaussian, student, z, t, s, cond)

    found = jax.jit(target)(jnp.float32(0.5))
    assert np.all(np.isfinite(found))
    teacher = gaussian(z, t, None)
    alpha, sigma = (c[:, None] for c in alpha_sigma(s))
    there = alpha * teacher.x + sigma * teacher.eps
    np.testing.assert_allclose(found[:-1], student(there, s, 0.5).x[:-1], atol=1e-6)
    np.testing.assert_allclose(found[-1], teacher.x[-1], atol=1e-6)  # the boundary condition
    assert not np.any(jax.grad(lambda cond: jnp.sum(target(cond)))(jnp.float32(0.5)))


@pytest.mark.parametrize("name", ["truncated_snr", "v_mse", "x_mse"])
def test_the_loss_compares_with_the_target_at_the_same_z(steps, name):
    z, t, *_ = steps
    prediction = to_prediction("v", jnp.sin(z), z, t)
    x_target = jnp.asarray(np.random.default_rng(1).normal(size=z.shape), jnp.float32)
    loss = losses.LOSSES[name]
    found = distillation.distillation_loss(loss, prediction, x_target)
    # All of them weigh |x̂ − x̃|²: by 1, SNR + 1, or the larger of 1 and SNR.
    snr = np.exp(np.asarray(t, np.float64))
    weight = {"x_mse": 1.0, "v_mse": 1 + snr, "truncated_snr": np.maximum(1, snr)}[name]
    error = np.mean((np.asarray(prediction.x, np.float64) - x_target) ** 2, axis=1)
    np.testing.assert_allclose(found, weight * error, rtol=1e-4)
    same = distillation.distillation_loss(loss, prediction, prediction.x)
    np.testing.assert_allclose(same, 0.0, atol=1e-9)
    gradient = jax.grad(
        lambda target: distillation.distillation_loss(loss, prediction, target).sum()
    )(x_target)
    assert not np.any(gradient)


def test_distribution_matching_moves_samples_to_the_data():
    """Samples m + s ε, and the best denoisers of them and of the data: m, s become the data's."""
    mean, deviation, levels = 0.7, 0.5, jnp.linspace(-2.0, 3.0, 16)

    def denoised(z, logsnr, mean, deviation):
        alpha, sigma = alpha_sigma(logsnr)
        gain = alpha * deviation**2 / (alpha**2 * deviation**2 + sigma**2)
        return mean + gain * (z - alpha * mean)

    def loss(student, key):
        eps, noise = jax.random.normal(key, (2, len(levels), 512))
        made = student[0] + student[1] * eps
        alpha, sigma = (c[:, None] for c in alpha_sigma(levels))
        z = alpha * made + sigma * noise
        real = denoised(z, levels[:, None], mean, deviation)
        fake = denoised(z, levels[:, None], student[0], student[1])
        target = distillation.distribution_target(made, real, fake)
        return 0.5 * jnp.mean(jnp.square(made - target))

    def update(student, key):
        return student - 0.1 * jax.grad(loss)(student, key), None

    keys = jax.random.split(jax.random.key(0), 300)
    student, _ = jax.jit(lambda: jax.lax.scan(update, jnp.array([-1.0, 1.5]), keys))()
    np.testing.assert_allclose(student, [mean, deviation], atol=0.02)


def test_the_distribution_target_moves_by_the_published_weight():
    made, real, fake = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4, 2, 5)), jnp.float32)
    size = np.abs(made - real).mean((1, 2), keepdims=True)
    found = distillation.distribution_target(made, real, fake)
    np.testing.assert_allclose(found, made - (fake - real) / size, rtol=1e-5)
    gradient = jax.grad(lambda x: distillation.distribution_target(x, real, fake).sum())(made)
    assert not np.any(gradient)
