import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import grids, schedules
from vdm_jax.diffusion.grids import logsnr_grid, parse_grid

COSINE = schedules.CosineSchedule()
EDM = schedules.EDMSchedule()


def test_uniform_in_time():
    np.testing.assert_allclose(
        logsnr_grid(EDM, 4, "schedule"), EDM(jnp.linspace(1, 0, 5)), rtol=1e-6
    )
    clean = logsnr_grid(EDM, 4)
    np.testing.assert_allclose(clean[:-1], EDM(jnp.array([1, 0.75, 0.5, 0.25])), rtol=1e-5)
    assert clean[-1] == np.inf
    edm = logsnr_grid(EDM, 4, "append")
    np.testing.assert_allclose(edm[:-1], EDM(jnp.array([1, 2 / 3, 1 / 3, 0])), rtol=1e-5)
    assert edm[-1] == np.inf


@pytest.mark.parametrize("spacing", grids.SPACINGS)
@pytest.mark.parametrize("steps", [1, 2, 7])
@pytest.mark.parametrize("name", ["cosine", "linear_beta", "edm", "rectified_flow"])
def test_every_grid_increases_and_ends_clean(name, steps, spacing):
    grid = jax.jit(lambda: logsnr_grid(schedules.make_schedule(name), steps, spacing=spacing))()
    assert grid.shape == (steps + 1,) and grid.dtype == jnp.float32
    assert grid[-1] == np.inf and np.all(np.isfinite(grid[:-1]))
    assert np.all(np.diff(grid) > 0)


def test_karras_is_equation_five():
    steps, rho, low, high = 10, 7.0, 0.002, 80.0
    i = np.arange(steps)
    sigmas = (high ** (1 / rho) + i / (steps - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
    grid = logsnr_grid(COSINE, steps, spacing="karras")
    np.testing.assert_allclose(grid[:-1], -2 * np.log(sigmas), rtol=1e-5)
    # The schedule of the same name, whatever the model's own.
    np.testing.assert_allclose(grid, logsnr_grid(EDM, steps, "append"), rtol=1e-5)
    other = logsnr_grid(COSINE, 4, spacing="karras", rho=3.0, sigma_min=0.01, sigma_max=10.0)
    np.testing.assert_allclose(np.exp(-other[0] / 2), 10.0, rtol=1e-5)
    np.testing.assert_allclose(np.exp(-other[-2] / 2), 0.01, rtol=1e-5)


def test_uniform_in_log_snr():
    grid = logsnr_grid(COSINE, 5, spacing="logsnr")
    ends = -2 * np.log([80.0, 0.002])
    np.testing.assert_allclose(grid[:-1], np.linspace(*ends, 5), rtol=1e-5)
    # "schedule" has one more point within the range, and no infinity.
    grid = logsnr_grid(COSINE, 4, "schedule", "logsnr")
    np.testing.assert_allclose(grid, np.linspace(*ends, 5), rtol=1e-5)


@pytest.mark.parametrize("spacing", ["logsnr", "karras"])
def test_the_range_is_cut_to_what_the_schedule_has(spacing):
    schedule = schedules.LinearBetaSchedule()
    grid = logsnr_grid(schedule, 6, spacing=spacing, sigma_min=1e-6, sigma_max=1e6)
    np.testing.assert_allclose(grid[0], schedule.logsnrs[-1], rtol=1e-5)
    np.testing.assert_allclose(grid[-2], schedule.logsnrs[0], rtol=1e-5)


def test_trailing_and_leading_are_the_timesteps_of_the_table():
    schedule = schedules.ScaledLinearBetaSchedule()  # T = 1000
    trailing = logsnr_grid(schedule, 10, spacing="trailing")
    np.testing.assert_allclose(
        schedule.timestep(trailing[:-1]),
        [999, 899, 799, 699, 599, 499, 399, 299, 199, 99],
        atol=0.01,
    )
    leading = logsnr_grid(schedule, 10, spacing="leading")
    np.testing.assert_allclose(schedule.timestep(leading[:-1]), np.arange(900, -1, -100), atol=0.01)
    three = schedule.timestep(logsnr_grid(schedule, 3, spacing="trailing")[:-1])
    np.testing.assert_allclose(three, [999, 666, 332], atol=0.01)
    every = schedule.timestep(logsnr_grid(schedule, 1000, spacing="leading")[:-1])
    np.testing.assert_allclose(every, np.arange(999, -1, -1), atol=0.02)


def test_trailing_and_leading_of_a_continuous_schedule_are_their_limits():
    np.testing.assert_allclose(
        logsnr_grid(COSINE, 4, spacing="trailing"), logsnr_grid(COSINE, 4), rtol=1e-6
    )
    leading = logsnr_grid(COSINE, 4, spacing="leading")
    np.testing.assert_allclose(leading[:-1], COSINE(jnp.array([0.75, 0.5, 0.25, 0.0])), rtol=1e-6)


def test_a_grid_of_ones_own():
    assert parse_grid("karras") == "karras"
    assert parse_grid("-8,-2, 0,inf") == (-8.0, -2.0, 0.0, np.inf)
    assert parse_grid("-inf,inf") == (-np.inf, np.inf)
    assert parse_grid(np.array([-1.0, 1.0, 1.0], np.float32)) == (-1.0, 1.0, 1.0)
    assert parse_grid([-3, 4]) == (-3.0, 4.0)


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        (
            "cosine",
            "grid='cosine' is unknown; allowed: time, logsnr, karras, trailing, leading, or",
        ),
        ("1", "two log-SNRs or more"),
        ([], "two log-SNRs or more"),
        ("3,2,4", "grid: 3, 2 must increase"),
        ([0.0, np.nan, 1.0], "grid: 0, nan must increase"),
        ([1.0, 1.0], "goes nowhere"),
        (np.zeros((2, 2)), r"grid has shape \(2, 2\)"),
    ],
)
def test_bad_grids_are_refused(grid, message):
    with pytest.raises(ValueError, match=message):
        parse_grid(grid)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="steps=0"):
        logsnr_grid(COSINE, 0)
    with pytest.raises(ValueError, match=r"end='zero'.*clean, append, schedule"):
        logsnr_grid(COSINE, 4, "zero")
    with pytest.raises(ValueError, match=r"spacing='log'.*time, logsnr, karras"):
        logsnr_grid(COSINE, 4, spacing="log")
    with pytest.raises(ValueError, match=r"spacing='leading' ends at \+inf; end='append'"):
        logsnr_grid(COSINE, 4, "append", "leading")
    with pytest.raises(ValueError, match="steps=11 must be at most the schedule's 10 timesteps"):
        logsnr_grid(schedules.LinearBetaSchedule(num_timesteps=10), 11, spacing="trailing")
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        logsnr_grid(COSINE, 4, spacing="karras", sigma_min=2.0, sigma_max=1.0)
    with pytest.raises(ValueError, match=r"rho=0\.0 must be positive"):
        logsnr_grid(COSINE, 4, spacing="karras", rho=0.0)
