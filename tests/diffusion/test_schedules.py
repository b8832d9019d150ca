import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import schedules
from vdm_jax.diffusion.schedules import alpha_sigma, make_schedule

VARIANTS = {
    "cosine": make_schedule("cosine"),
    "cosine_shifted": make_schedule("cosine", shift=-2.0, logsnr_min=-15.0, logsnr_max=10.0),
    "linear_beta": make_schedule("linear_beta"),
    "scaled_linear_beta": make_schedule("scaled_linear_beta"),
    "edm": make_schedule("edm"),
    "svd": make_schedule("edm", sigma_max=700.0),
    "log_normal": make_schedule("log_normal"),
    "rectified_flow": make_schedule("rectified_flow"),
    "rectified_flow_shifted": make_schedule("rectified_flow", shift=3.0),
}


def test_alpha_sigma_are_exact_at_the_ends_and_on_the_circle():
    alpha, sigma = alpha_sigma(jnp.array([-jnp.inf, jnp.inf, 0.0]))
    np.testing.assert_array_equal(alpha[:2], [0.0, 1.0])
    np.testing.assert_array_equal(sigma[:2], [1.0, 0.0])
    logsnr = jnp.linspace(-20, 20, 101)
    alpha, sigma = (np.asarray(c, np.float64) for c in alpha_sigma(logsnr))
    np.testing.assert_allclose(alpha**2 + sigma**2, 1.0, atol=3e-7)
    np.testing.assert_allclose(2 * np.log(alpha / sigma), logsnr, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("variant", VARIANTS)
def test_decreasing_finite_and_inverted(variant):
    schedule = VARIANTS[variant]
    assert isinstance(schedule, schedules.Schedule)
    t = jnp.linspace(0.0, 1.0, 2001)
    logsnr = jax.jit(schedule)(t)
    assert logsnr.dtype == jnp.float32
    assert np.all(np.isfinite(logsnr))
    assert np.all(np.diff(logsnr) < 0)
    inner = slice(1, -1)  # the clipped ends of rectified flow are shift · 5e-5 inside
    np.testing.assert_allclose(schedule.inverse(logsnr)[inner], t[inner], atol=2e-6)
    np.testing.assert_allclose(schedule.inverse(logsnr), t, atol=2e-4)


@pytest.mark.parametrize("variant", ["cosine", "linear_beta"])
def test_times_of_any_shape(variant):
    schedule = jax.jit(VARIANTS[variant])
    t = jnp.linspace(0.1, 0.9, 6)
    np.testing.assert_allclose(schedule(t.reshape(2, 3)).reshape(-1), schedule(t), rtol=1e-6)
    assert schedule(t[0]).shape == ()


def test_cosine_at_known_points():
    schedule = VARIANTS["cosine"]
    assert float(schedule(jnp.array(0.0))) == 20.0
    assert float(schedule(jnp.array(1.0))) == -20.0
    np.testing.assert_allclose(schedule(jnp.array(0.5)), 0.0, atol=1e-6)
    # tan(π/8) = √2 − 1.
    np.testing.assert_allclose(
        schedule(jnp.array(0.25)), -2 * math.log(math.sqrt(2) - 1), rtol=2e-4
    )
    t = np.linspace(0.01, 0.99, 50)
    alpha, sigma = alpha_sigma(schedule(jnp.asarray(t)))
    np.testing.assert_allclose(alpha, np.cos(np.pi * t / 2), atol=1e-4)
    np.testing.assert_allclose(sigma, np.sin(np.pi * t / 2), atol=1e-4)


def test_resolution_shift_halves_the_signal_to_noise_amplitude():
    shift = schedules.resolution_shift(64, 128)
    plain, shifted = make_schedule("cosine"), make_schedule("cosine", shift=shift)
    t = jnp.linspace(0.1, 0.9, 9)
    np.testing.assert_allclose(shifted(t) - plain(t), -2 * math.log(2), atol=2e-3)
    assert float(shifted(jnp.array(0.0))) == 20.0
    assert float(shifted(jnp.array(1.0))) == -20.0


@pytest.mark.parametrize(
    ("name", "betas"),
    [
        ("linear_beta", np.linspace(1e-4, 0.02, 1000)),
        ("scaled_linear_beta", np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2),
    ],
)
def test_discrete_grids_have_the_published_alphas_cumprod(name, betas):
    alphas_cumprod = np.cumprod(1.0 - betas)
    schedule = make_schedule(name)
    alpha, _ = alpha_sigma(schedule.logsnrs)
    np.testing.assert_allclose(np.asarray(alpha, np.float64) ** 2, alphas_cumprod, rtol=2e-5)
    np.testing.assert_allclose(
        schedule.logsnrs, np.log(alphas_cumprod / (1 - alphas_cumprod)), rtol=1e-5, atol=1e-5
    )
    steps = jnp.array([0.0, 1.0, 500.0, 998.0, 999.0])
    np.testing.assert_allclose(schedule.timestep(schedule.logsnrs[steps.astype(int)]), steps)
    np.testing.assert_allclose(
        schedule(steps / 999), schedule.logsnrs[steps.astype(int)], rtol=1e-5
    )


def test_stable_diffusion_known_ends():
    # alphas_cumprod of Stable Diffusion 1.x: 0.99915 at timestep 0 and 0.0047 at 999.
    alpha, _ = alpha_sigma(make_schedule("scaled_linear_beta").logsnrs)
    np.testing.assert_allclose(alpha[0] ** 2, 0.99915, rtol=1e-5)
    np.testing.assert_allclose(alpha[-1] ** 2, 0.00466, rtol=2e-3)


def test_edm_grid_is_equation_five():
    steps = 18
    index = np.arange(steps)
    sigma = (80 ** (1 / 7) + index / (steps - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    logsnr = make_schedule("edm")(jnp.linspace(1.0, 0.0, steps))
    np.testing.assert_allclose(schedules.sigma_from_logsnr(logsnr), sigma, rtol=2e-5)
    np.testing.assert_allclose(
        schedules.logsnr_from_sigma(jnp.asarray(sigma)), logsnr, rtol=1e-5, atol=1e-5
    )


def test_log_normal_has_the_stated_mean_and_deviation_of_log_sigma():
    t = (jnp.arange(100_000) + 0.5) / 100_000
    log_sigma = jnp.log(schedules.sigma_from_logsnr(make_schedule("log_normal")(t)))
    np.testing.assert_allclose(jnp.mean(log_sigma), -1.2, atol=2e-3)
    np.testing.assert_allclose(jnp.std(log_sigma), 1.2, rtol=2e-3)


def test_log_normal_is_logit_normal_in_flow_time():
    t = jnp.linspace(0.01, 0.99, 50)
    flow = schedules.flow_time(make_schedule("log_normal", P_mean=0.3, P_std=1.4)(t))
    logit = np.log(flow / (1 - flow))
    np.testing.assert_allclose(logit, 0.3 + 1.4 * jax.scipy.special.ndtri(t), rtol=1e-4, atol=1e-4)


def test_rectified_flow_is_a_straight_line_in_its_own_coordinates():
    t = jnp.linspace(0.05, 0.95, 10)
    logsnr = make_schedule("rectified_flow")(t)
    x, eps = jax.random.normal(jax.random.key(0), (2, 10, 3))
    alpha, sigma = (c[:, None] for c in alpha_sigma(logsnr))
    z = alpha * x + sigma * eps
    z_rf = schedules.vp_to_flow(z, logsnr)
    np.testing.assert_allclose(z_rf, (1 - t[:, None]) * x + t[:, None] * eps, atol=2e-6)
    np.testing.assert_allclose(schedules.flow_to_vp(z_rf, logsnr), z, atol=1e-6)


def test_rectified_flow_shift():
    t = jnp.linspace(0.05, 0.95, 10)
    flow = schedules.flow_time(make_schedule("rectified_flow", shift=3.0)(t))
    np.testing.assert_allclose(flow, 3 * t / (1 + 2 * t), rtol=1e-5)


def test_variance_exploding_coordinates():
    logsnr = jnp.array([-5.0, 0.0, 7.0])
    x, eps = jax.random.normal(jax.random.key(1), (2, 3, 4))
    sigma = schedules.sigma_from_logsnr(logsnr)[:, None]
    z = schedules.ve_to_vp(x + sigma * eps, logsnr)
    alpha, sigma_vp = (c[:, None] for c in alpha_sigma(logsnr))
    np.testing.assert_allclose(z, alpha * x + sigma_vp * eps, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(schedules.vp_to_ve(z, logsnr), x + sigma * eps, rtol=1e-5, atol=1e-6)


def test_errors_name_the_field_the_value_and_what_is_allowed():
    with pytest.raises(ValueError, match=r"'cosin'.*cosine, linear_beta"):
        make_schedule("cosin")
    with pytest.raises(ValueError, match=r"no field rho; allowed: logsnr_min, logsnr_max, shift"):
        make_schedule("cosine", rho=7.0)
    with pytest.raises(ValueError, match=r"logsnr_min=3\.0 must be below logsnr_max=-3\.0"):
        make_schedule("cosine", logsnr_min=3.0, logsnr_max=-3.0)
    with pytest.raises(ValueError, match=r"beta_end=1\.5"):
        make_schedule("linear_beta", beta_end=1.5)
    with pytest.raises(ValueError, match=r"num_timesteps=1 "):
        make_schedule("linear_beta", num_timesteps=1)
    with pytest.raises(ValueError, match=r"sigma_min=0\.0"):
        make_schedule("edm", sigma_min=0.0)
    with pytest.raises(ValueError, match=r"shift=0\.0"):
        make_schedule("rectified_flow", shift=0.0)
    with pytest.raises(ValueError, match=r"P_std=0\.0"):
        make_schedule("log_normal", P_std=0.0)
