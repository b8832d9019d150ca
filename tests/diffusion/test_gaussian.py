"""Samplers on Gaussian data, where the best denoiser is known in closed form.

For x ~ N(μ, Σ) and z = α x + σ ε, E[x | z] = μ + α Σ (α² Σ + σ² I)⁻¹ (z − α μ): a sampler fed with
it must return N(μ, Σ), up to its own discretisation error.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import predictions
from vdm_jax.diffusion.process import Process
from vdm_jax.diffusion.samplers import DDIM, Ancestral, logsnr_grid, sample
from vdm_jax.diffusion.schedules import alpha_sigma, make_schedule

SHAPE = (2, 1, 1, 3)  # f h w c
DIM = 6
VARIANCES = np.array([0.02, 0.1, 0.3, 0.6, 1.0, 1.8])
ROTATION = np.linalg.qr(np.random.default_rng(0).normal(size=(DIM, DIM)))[0]
MEAN = np.array([0.9, -0.7, 0.5, -0.3, 0.1, 1.0])
COVARIANCE = ROTATION @ np.diag(VARIANCES) @ ROTATION.T

STEPS = 64
SAMPLES = 1 << 13
WHITE = np.random.default_rng(1).normal(size=(SAMPLES, DIM))
# Standard error of a sample covariance in Frobenius norm, relative: E|Ĉ−C|² = (tr² C + |C|²)/N.
STANDARD_ERROR = np.sqrt(
    (np.trace(COVARIANCE) ** 2 + np.linalg.norm(COVARIANCE) ** 2) / SAMPLES
) / np.linalg.norm(COVARIANCE)

SCHEDULES = {
    "cosine": make_schedule("cosine"),
    "cosine_shifted": make_schedule("cosine", shift=-1.0, logsnr_min=-12.0, logsnr_max=15.0),
    "linear_beta": make_schedule("linear_beta"),
    "scaled_linear_beta": make_schedule("scaled_linear_beta"),
    "edm": make_schedule("edm"),
    "rectified_flow": make_schedule("rectified_flow"),
    "rectified_flow_shifted": make_schedule("rectified_flow", shift=3.0),
}
DETERMINISTIC = [DDIM(), DDIM(form="angular")]
STOCHASTIC = [DDIM(eta=0.5), DDIM(eta=1.0), Ancestral(gamma=0.0), Ancestral(), Ancestral(gamma=1.0)]


def gaussian_network(kind, dtype=jnp.float32):
    """The optimal network for the data above, as `(z, logsnr, cond) -> output`."""

    def network(z, logsnr, cond):
        alpha, sigma = (c[:, None] for c in alpha_sigma(logsnr))
        centred = z.reshape(z.shape[0], DIM) - alpha * MEAN
        # (α² Σ + σ² I)⁻¹ (z − α μ) in the eigenbasis, which neither α = 0 nor σ = 0 troubles.
        whitened = jnp.dot(centred, ROTATION, precision="highest") / (
            alpha**2 * VARIANCES + sigma**2
        )
        back = functools.partial(jnp.dot, b=ROTATION.T, precision="highest")
        x = (MEAN + back(alpha * VARIANCES * whitened)).reshape(z.shape)
        eps = back(sigma * whitened).reshape(z.shape)
        if kind == "score":
            return -back(whitened).reshape(z.shape).astype(dtype)
        return predictions.target(kind, x, eps, logsnr).astype(dtype)

    return network


def gaussian_denoiser(z, logsnr, cond):
    """The denoiser of the prediction kind number `cond`: one compilation serves every kind."""
    denoisers = [Process(prediction=k).denoiser(gaussian_network(k)) for k in predictions.KINDS]
    branches = [functools.partial(denoiser, cond=None) for denoiser in denoisers]
    return jax.lax.switch(cond, branches, z, logsnr)


@functools.cache
def compiled(rule):
    """The sampler over several grids (schedules, numbers of steps) at once, of any kind."""

    def run(key, logsnrs, z, kind):
        return sample(key, gaussian_denoiser, rule, logsnrs, z, kind)

    return jax.jit(jax.vmap(run, in_axes=(None, 0, 0, None)))


def run(rule, kind, grids, white=WHITE):
    """Samples `[grid, n, DIM]` from white noise `[n, DIM]`, from each grid's exact marginal."""
    starts = np.stack([start(grid[0], white) for grid in grids])
    index = predictions.KINDS.index(kind)
    out = compiled(rule)(jax.random.key(2), jnp.asarray(grids, jnp.float32), starts, index)
    assert out.dtype == jnp.float32
    return np.asarray(out, np.float64).reshape(len(grids), -1, DIM)


@functools.cache
def samples(rule, kind):
    """Samples of every schedule with `STEPS` steps, `[schedule, SAMPLES, DIM]`."""
    return run(rule, kind, all_grids(STEPS))


def start(logsnr, white):
    """z at `logsnr` from white noise: exact draws of its marginal distribution."""
    alpha, sigma = (np.sqrt(1 / (1 + np.exp(sign * np.float64(logsnr)))) for sign in (-1, 1))
    deviation = np.sqrt(alpha**2 * VARIANCES + sigma**2)
    z = alpha * MEAN + (white * deviation) @ ROTATION.T
    return z.reshape(-1, *SHAPE).astype(np.float32)


def affine_moments(rule, kind, grids):
    """Mean and covariance for each grid of a deterministic rule: an affine map, so no sampling."""
    out = run(rule, kind, grids, np.concatenate([np.zeros((1, DIM)), np.eye(DIM)]))
    columns = out[:, 1:] - out[:, :1]
    return out[:, 0], np.einsum("gnd,gne->gde", columns, columns)


def relative_errors(mean, covariance):
    """Distances from the data's mean (in deviations) and covariance (relative, Frobenius)."""
    return (
        np.linalg.norm(mean - MEAN, axis=-1) / np.sqrt(np.trace(COVARIANCE)),
        np.linalg.norm(covariance - COVARIANCE, axis=(-2, -1)) / np.linalg.norm(COVARIANCE),
    )


def pad(grid, steps):
    """The grid with its end repeated up to `steps` steps, which do nothing: one compilation."""
    return np.pad(np.asarray(grid), (0, steps + 1 - len(grid)), mode="edge")


@functools.cache
def all_grids(steps, end="clean"):
    grids = jax.jit(lambda: [logsnr_grid(s, steps, end) for s in SCHEDULES.values()])()
    return np.stack(grids)


def rule_name(rule):
    return "-".join([type(rule).__name__, *(str(value) for value in vars(rule).values())])


def expected_moments(rule, grid):
    """Mean and covariance after the grid from the papers' formulas, in double precision.

    Each eigenvector of Σ is a problem of its own: z_s = A z_t + B x̂ + D ξ, x̂ = μ + k (z_t − α_t μ).
    """
    grid = np.asarray(grid, np.float64)
    alpha, sigma = (np.sqrt(1 / (1 + np.exp(sign * grid))) for sign in (-1, 1))
    mean, variance = alpha[0], alpha[0] ** 2 * VARIANCES + sigma[0] ** 2  # mean in units of μ
    for i in range(len(grid) - 1):
        if grid[i] == grid[i + 1]:
            continue  # padding
        a_t, s_t, a_s, s_s = alpha[i], sigma[i], alpha[i + 1], sigma[i + 1]
        if isinstance(rule, DDIM):  # Song et al. 2021, eq. 12 and 16
            noise = rule.eta**2 * (s_s / s_t) ** 2 * (1 - (a_t / a_s) ** 2)
            keep = np.sqrt(s_s**2 - noise) / s_t
            to_x = a_s - a_t * keep
        else:  # VDM, §2: the posterior q(z_s | z_t, x) and the interpolated variance
            ratio = np.exp(grid[i] - grid[i + 1])
            keep, to_x = ratio * a_s / a_t, (1 - ratio) * a_s
            lower, upper = (1 - ratio) * s_s**2, (1 - ratio) * s_t**2
            noise = lower ** (1 - rule.gamma) * upper**rule.gamma if s_s > 0 else 0.0
        gain = a_t * VARIANCES / (a_t**2 * VARIANCES + s_t**2)
        mean = keep * mean + to_x
        variance = (keep + to_x * gain) ** 2 * variance + noise
    return mean * MEAN, ROTATION @ np.diag(variance) @ ROTATION.T


@pytest.mark.parametrize("rule", [DDIM(), *STOCHASTIC], ids=rule_name)
def test_the_papers_formulas_converge_to_the_data(rule):
    # Of `expected_moments` itself: what the samplers are held to below is of first order.
    steps = (64, 256, 1024)
    for index, schedule in enumerate(SCHEDULES):
        means, covariances = np.transpose(
            [relative_errors(*expected_moments(rule, all_grids(n, "append")[index])) for n in steps]
        )
        assert means.max() < 1e-6
        assert covariances[0] < 0.2
        slopes = np.log(covariances[:-1] / covariances[1:]) / np.log(4)
        # At γ = 1 leading errors of opposite sign may cancel: faster than first order at first.
        assert np.all(slopes > 0.7), (schedule, slopes)
        assert np.all(slopes < 1.3) or vars(rule).get("gamma") == 1.0, (schedule, slopes)


@pytest.mark.parametrize("rule", DETERMINISTIC, ids=rule_name)
def test_ddim_has_the_mean_and_covariance_of_the_data_with_error_of_order_one(rule):
    # All schedules and all numbers of steps in one call.
    counts = (16, 32, 64, 128)
    grids = np.concatenate([[pad(grid, 128) for grid in all_grids(n, "append")] for n in counts])
    for kind in predictions.KINDS:
        means, covariances = affine_moments(rule, kind, grids)
        mean_errors, errors = relative_errors(means, covariances)
        assert mean_errors.max() < 1e-4
        errors = errors.reshape(len(counts), len(SCHEDULES))
        slopes = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
        assert np.all((slopes > 0.85) & (slopes < 1.15)), (kind, slopes)
        assert errors[-1].max() < 0.04
        for grid, covariance in zip(grids, covariances, strict=True):
            np.testing.assert_allclose(covariance, expected_moments(rule, grid)[1], atol=5e-4)


@pytest.mark.parametrize("rule", STOCHASTIC, ids=rule_name)
def test_stochastic_samplers_have_the_mean_and_covariance_of_the_data(rule):
    for kind in predictions.KINDS:
        for name, grid, drawn in zip(SCHEDULES, all_grids(STEPS), samples(rule, kind), strict=True):
            mean, covariance = drawn.mean(0), np.cov(drawn.T)
            expected_mean, expected = expected_moments(rule, grid)
            # Within four standard errors of what the published formulas give in these steps …
            mean_distance = np.linalg.norm(mean - expected_mean)
            assert mean_distance < 4 * np.sqrt(np.trace(COVARIANCE) / SAMPLES), (kind, name)
            distance = np.linalg.norm(covariance - expected) / np.linalg.norm(COVARIANCE)
            assert distance < 4 * STANDARD_ERROR, (kind, name)
            # … which is near the data, and nearer with more steps (the test of the formulas).
            discretisation = relative_errors(expected_mean, expected)[1]
            assert discretisation < 0.16, (kind, name)
            total = relative_errors(mean, covariance)[1]
            assert total < discretisation + 4 * STANDARD_ERROR, (kind, name)


@pytest.mark.parametrize("rule", STOCHASTIC, ids=rule_name)
def test_the_prediction_kind_does_not_change_a_sample(rule):
    # The same noise and the same denoiser in another form.
    for kind in predictions.KINDS:
        np.testing.assert_allclose(samples(rule, kind), samples(rule, "v"), atol=5e-3, err_msg=kind)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_angular_and_x_eps_forms_agree_to_rounding(eta):
    angular = samples(DDIM(eta=eta, form="angular"), "v")
    np.testing.assert_allclose(angular, samples(DDIM(eta=eta), "v"), atol=5e-5)


def test_ddim_with_eta_one_is_ancestral_sampling_with_the_lower_variance():
    expected = samples(Ancestral(gamma=0.0), "v")
    np.testing.assert_allclose(samples(DDIM(eta=1.0), "v"), expected, atol=5e-5)


@pytest.mark.parametrize("rule", DETERMINISTIC + STOCHASTIC, ids=rule_name)
def test_extreme_log_snrs(rule):
    inner = np.linspace(-8.0, 8.0, 15)
    finite, infinite = np.r_[-20.0, inner, 20.0], np.r_[-np.inf, inner, np.inf]
    grids = [finite, infinite, np.array([-np.inf, np.inf])]
    # As many grids and steps as elsewhere, so that nothing is compiled anew.
    grids = np.stack([pad(grid, STEPS) for grid in grids + grids[:1] * (len(SCHEDULES) - 3)])
    finite, infinite, at_once = run(rule, "v", grids)[:3]
    # z at −20 differs from pure noise by α = 4.5e-5. γ = 1 leaves the noise of the last step
    # (σ² = 3e-4 at λ = 8) at +20 and none at +inf.
    tolerance = 0.1 if vars(rule).get("gamma") == 1.0 else 1e-2
    np.testing.assert_allclose(finite, infinite, atol=tolerance)
    # From pure noise to clean data at once: the best guess of anything is the mean.
    np.testing.assert_allclose(at_once, np.tile(MEAN, (SAMPLES, 1)), atol=1e-6)


@pytest.mark.parametrize("kind", predictions.KINDS)
def test_a_bfloat16_network_is_sampled_in_float32_and_stays_finite(kind):
    denoiser = Process(prediction=kind).denoiser(gaussian_network(kind, jnp.bfloat16))
    grid = jnp.asarray(all_grids(STEPS, "schedule")[0])
    out = jax.jit(lambda z: sample(jax.random.key(0), denoiser, DDIM(), grid, z))(
        start(grid[0], WHITE[:32])
    )
    assert out.dtype == jnp.float32
    assert np.all(np.isfinite(out))
