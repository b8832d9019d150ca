"""Solvers against the papers' formulas (`papers.py`) and against the exact probability flow."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion import papers
from tests.diffusion import test_gaussian as gaussian
from vdm_jax.diffusion import schedules, solvers
from vdm_jax.diffusion.grids import logsnr_grid
from vdm_jax.diffusion.predictions import to_prediction
from vdm_jax.diffusion.samplers import DDIM, Corrector, Distilled, sample

MEAN, VARIANCES = gaussian.MEAN, gaussian.VARIANCES

ORDERS = {
    DDIM(): 1,
    solvers.Euler(): 1,
    solvers.FlowEuler(): 1,
    solvers.DPMPP2M(): 2,
    solvers.DPMPP2S(): 2,
    solvers.Heun(): 2,
    solvers.FlowMidpoint(): 2,
    solvers.FlowHeun(): 2,
}
STOCHASTIC = [
    solvers.DPMPP2MSDE(),
    solvers.Euler(churn=8.0, steps=64),
    solvers.Heun(churn=8.0, steps=64),
    Distilled(),
    Corrector(rule=DDIM(), delta=0.1),
    Corrector(rule=solvers.DPMPP2M(), delta=0.1),
]
PARTIAL_CHURN = solvers.Heun(churn=9.0, churn_min=0.1, churn_max=5.0, churn_noise=1.1, steps=9)


def denoiser(z, logsnr, cond):
    """Optimal for elements x ~ N(MEAN, VARIANCES), by its v, which any λ can stand."""
    alpha, sigma = (schedules.expand(c, z.ndim) for c in schedules.alpha_sigma(logsnr))
    scaled = (z - alpha * MEAN) / (alpha**2 * VARIANCES + sigma**2)
    v = alpha * sigma * scaled * (1 - VARIANCES) - sigma * MEAN
    return to_prediction("v", v, z, logsnr)


@functools.cache
def compiled(rule, denoise=denoiser):
    """The sampler over several grids of one length at once."""

    def run(key, grid, z):
        return sample(key, denoise, rule, grid, z)

    return jax.jit(jax.vmap(run, in_axes=(None, 0, None)))


def drawn_noise(key, steps, shape, with_corrector):
    """What `sample` draws: [steps, 2, *shape], the rule's and the corrector's."""
    draw = functools.partial(jax.random.normal, shape=shape, dtype=jnp.float32)

    def of_step(i):
        key_i = jax.random.fold_in(key, i)
        own, other = jax.random.split(key_i)
        return jnp.stack([draw(own if with_corrector else key_i), draw(other)])

    return np.asarray(jax.vmap(of_step)(jnp.arange(steps)), np.float64)


@pytest.mark.parametrize("rule", [*ORDERS, *STOCHASTIC, PARTIAL_CHURN], ids=gaussian.rule_name)
def test_a_rule_computes_the_papers_formulas(rule):
    steps = 9
    to_clean = logsnr_grid(schedules.CosineSchedule(), steps, spacing="logsnr", sigma_max=40.0)
    uneven = -6.0 + 12.0 * np.linspace(0, 1, steps + 1) ** 1.3
    stacked = jnp.asarray(np.stack([to_clean, uneven]), jnp.float32)
    key, shape = jax.random.key(5), (4, len(MEAN))
    z = jnp.asarray(np.random.default_rng(3).normal(size=shape), jnp.float32)
    out = compiled(rule)(key, stacked, z)
    noises = drawn_noise(key, steps, shape, isinstance(rule, Corrector))
    denoise = papers.denoiser(MEAN, VARIANCES)
    for grid, ours in zip(np.asarray(stacked, np.float64), out, strict=True):
        theirs = papers.run(rule, grid, np.asarray(z, np.float64), noises, denoise)
        np.testing.assert_allclose(ours, theirs, atol=2e-5, rtol=1e-4)


COUNTS = (32, 64, 128)


def order_grids():
    """Between finite ends: uniform in λ, in the cosine schedule's t and in rectified flow's."""
    limits = {"logsnr_min": -5.0, "logsnr_max": 5.0}
    cosine, flow = (schedules.make_schedule(n, **limits) for n in ("cosine", "rectified_flow"))
    sigmas = {"sigma_min": float(np.exp(-2.5)), "sigma_max": float(np.exp(2.5))}
    # Rectified flow's t without the clip of its schedule, which would repeat both ends.
    ends = np.asarray(flow.inverse(jnp.array([-5.0, 5.0])))
    return {
        "logsnr": [logsnr_grid(cosine, n, "schedule", "logsnr", **sigmas) for n in COUNTS],
        "cosine": [logsnr_grid(cosine, n, "schedule") for n in COUNTS],
        "flow": [flow(jnp.linspace(*ends, n + 1)) for n in COUNTS],
        "karras": [logsnr_grid(cosine, n, "schedule", "karras", **sigmas) for n in COUNTS],
    }


MIXTURE = {"centre": 0.8, "width": 0.3}
# On Gaussian data y(t) = z_rf − (1 − t) μ has y² quadratic in t, so y y‴ + 3 y′ y″ = 0. With
# it the midpoint method's h³ error, y‴/6 − A″ y/8 − A′ A y/4 with A = y′/y, is 0: order 3.
GAUSSIAN_ORDERS = ORDERS | {solvers.FlowMidpoint(): 3}


def mixture(z, logsnr, cond):
    alpha, sigma = (schedules.expand(c, z.ndim) for c in schedules.alpha_sigma(logsnr))
    x = papers.mixture_mean(jnp, z, alpha, sigma, **MIXTURE)
    return to_prediction("x", x, z, logsnr)


# Two points: at the Gaussian's mean and a deviation of the noise away from it.
START = np.stack([np.zeros(len(MEAN)), np.linspace(0.5, 1.5, len(MEAN))])


@functools.cache
def exact_solution(data, ends):
    """The probability flow from START over λ from ends[0] to ends[1]."""
    if data == "gaussian":
        return papers.exact_flow(START, *ends, MEAN, VARIANCES)
    # By many steps: 128 times those of the coarsest grid, 1e-4 of its second-order error.
    fine = np.linspace(*ends, 128 * COUNTS[0] + 1)
    noises = np.zeros((len(fine), 2, 1))
    return papers.run(solvers.DPMPP2S(), fine, START, noises, papers.mixture_denoiser(**MIXTURE))


@functools.cache
def errors(rule, data):
    """Errors of the papers' formulas in double precision and of the rule, {grid: [counts]}."""
    if data == "gaussian":
        denoise, ours = papers.denoiser(MEAN, VARIANCES), denoiser
    else:
        denoise, ours = papers.mixture_denoiser(**MIXTURE), mixture
    grids = [np.float64(g) for of_name in order_grids().values() for g in of_name]
    noises = np.zeros((COUNTS[-1], 2, 1))
    formulas = [papers.run(rule, grid, START, noises, denoise) for grid in grids]
    padded = jnp.asarray([gaussian.pad(grid, COUNTS[-1]) for grid in grids], jnp.float32)
    measured = compiled(rule, ours)(jax.random.key(0), padded, jnp.asarray(START, jnp.float32))
    distances = [
        [np.linalg.norm(z - exact_solution(data, tuple(grid[[0, -1]]))) for z in pair]
        for *pair, grid in zip(formulas, np.float64(measured), grids, strict=True)
    ]
    both = np.array(distances).T.reshape(2, len(order_grids()), len(COUNTS))
    return tuple(dict(zip(order_grids(), of_one, strict=True)) for of_one in both)


def order(counts, errors):
    """By step halving: the slope of log error over log steps."""
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@pytest.mark.parametrize("data", ["gaussian", "mixture"])
@pytest.mark.parametrize("rule", ORDERS, ids=gaussian.rule_name)
def test_deterministic_rules_converge_with_their_order(rule, data):
    formulas, measured = errors(rule, data)
    expected = (GAUSSIAN_ORDERS if data == "gaussian" else ORDERS)[rule]
    for name, exact in formulas.items():
        assert abs(order(COUNTS, exact) - expected) < 0.25, (name, order(COUNTS, exact), exact)
        # The rule makes the formulas' error up to float32's rounding, and where that is small
        # beside it, has the order too.
        np.testing.assert_allclose(measured[name], exact, atol=2e-5)
        above = measured[name] > 1e-4
        if above.sum() >= 2:
            slope = order(np.array(COUNTS)[above], measured[name][above])
            assert abs(slope - expected) < 0.25, (name, slope, measured[name])


@pytest.mark.parametrize("data", ["gaussian", "mixture"])
def test_rules_of_second_order_need_fewer_evaluations_than_ddim(data):
    of = {rule: errors(rule, data)[0]["logsnr"] for rule in ORDERS}
    for rule, order in ORDERS.items():
        if order == 2:
            evaluations = 1 if isinstance(rule, solvers.DPMPP2M) else 2
            of_ddim = of[DDIM()][COUNTS.index(COUNTS[0] * evaluations)]
            assert of[rule][0] < 0.5 * of_ddim, rule


@pytest.mark.parametrize("rule", STOCHASTIC, ids=gaussian.rule_name)
def test_stochastic_rules_have_the_mean_and_covariance_of_the_data(rule):
    counts = (16, 32, 64)
    schedule = schedules.CosineSchedule()
    grids = [np.asarray(logsnr_grid(schedule, n, spacing="logsnr")) for n in counts]
    exact = [papers.moments(rule, grid, MEAN, VARIANCES) for grid in grids]
    covariances = [gaussian.ROTATION @ np.diag(v) @ gaussian.ROTATION.T for _, v in exact]
    errors = [
        gaussian.relative_errors(mean, covariance)[1]
        for (mean, _), covariance in zip(exact, covariances, strict=True)
    ]
    # The discretisation error, without sampling, falls. The Langevin step keeps its own, at most
    # δ/4 of the variance at each level.
    floor = 0.03 if isinstance(rule, Corrector) else 0.0
    falling = np.maximum(np.array(errors) - floor, 0.0)
    assert falling[0] > 1.5 * falling[1] > 2.25 * falling[2], errors
    assert errors[-1] < 0.16, errors
    drawn = gaussian.run(rule, "v", [gaussian.pad(grid, counts[-1]) for grid in grids])
    for (mean, _), covariance, z in zip(exact, covariances, drawn, strict=True):
        np.testing.assert_allclose(mean, MEAN, atol=1e-6)
        distance = np.linalg.norm(z.mean(0) - MEAN)
        assert distance < 4 * np.sqrt(np.trace(gaussian.COVARIANCE) / gaussian.SAMPLES)
        distance = np.linalg.norm(np.cov(z.T) - covariance) / np.linalg.norm(covariance)
        assert distance < 4 * gaussian.STANDARD_ERROR


def test_the_langevin_step_keeps_the_marginal_up_to_its_own_error():
    delta, level = 0.1, 0.0
    rule = Corrector(rule=DDIM(), delta=delta)
    # From λ to itself plus nothing to speak of, again and again: the corrector alone.
    grid = level + 1e-8 * np.arange(400)
    variance = papers.moments(rule, grid, MEAN, VARIANCES)[1]
    marginal = 0.5 * VARIANCES + 0.5
    np.testing.assert_allclose(variance, marginal / (1 - delta * 0.5 / (4 * marginal)), rtol=1e-4)


ENDS = {
    "limits": np.r_[-20.0, np.linspace(-8.0, 8.0, 13), 20.0],
    "infinite": np.r_[-np.inf, np.linspace(-8.0, 8.0, 13), np.inf],
    "zero_terminal": np.r_[-np.inf, np.linspace(-8.0, 8.0, 14)],
    "repeated": np.r_[-np.inf, -np.inf, np.linspace(-8.0, 8.0, 10), 8.0, np.inf, np.inf],
    "at_once": np.r_[[-np.inf] * 7, [np.inf] * 8],
}


@pytest.mark.parametrize("rule", [*ORDERS, *STOCHASTIC, PARTIAL_CHURN], ids=gaussian.rule_name)
def test_extreme_log_snrs(rule):
    z = jnp.asarray(gaussian.WHITE[:512], jnp.float32)
    out = compiled(rule)(jax.random.key(1), jnp.asarray(np.stack(list(ENDS.values()))), z)
    assert np.all(np.isfinite(out)), [
        name for name, o in zip(ENDS, out, strict=True) if not np.isfinite(o).all()
    ]
    out = dict(zip(ENDS, out, strict=True))
    if not isinstance(rule, solvers.FlowMidpoint):
        # From pure noise to clean data at once: the best guess of anything is the mean. The
        # midpoint method alone looks on the way.
        np.testing.assert_allclose(out["at_once"], np.tile(MEAN, (512, 1)), atol=1e-6)
    if isinstance(rule, solvers.Heun):
        return  # a step over σ = e^10 to e^4 is beyond Heun's method; from infinity it is Euler's
    inner = rule.rule if isinstance(rule, Corrector) else rule
    if not getattr(inner, "churn", 0.0) and not hasattr(inner, "_advance"):
        # z at −20 differs from pure noise by α = 4.5e-5. Churn and two-step rules do treat an
        # infinite λ differently: no noise is added there, and nothing extrapolated from there.
        np.testing.assert_allclose(out["limits"], out["infinite"], atol=3e-2)
    deviations = np.std(out["infinite"], axis=0) / np.sqrt(VARIANCES)
    assert np.all((deviations > 0.6) & (deviations < 1.4)), deviations


@pytest.mark.parametrize("rule", [*ORDERS, *STOCHASTIC], ids=gaussian.rule_name)
def test_the_network_is_never_asked_at_clean_data(rule):
    # Networks embed λ by sines: at infinity their output is not a number.
    def network(z, logsnr, cond):
        return jax.tree.map(lambda leaf: leaf + 0.0 * logsnr[0], denoiser(z, logsnr, cond))

    grid = logsnr_grid(schedules.CosineSchedule(), 4, spacing="karras")
    z = jnp.ones((2, len(MEAN)))
    out = jax.jit(lambda z: sample(jax.random.key(0), network, rule, grid, z))(z)
    assert np.all(np.isfinite(out))


def test_only_the_evaluations_that_count_are_made():
    def calls(rule):
        seen = []

        def counted(z, logsnr, cond):
            jax.debug.callback(lambda: seen.append(1))
            return denoiser(z, logsnr, cond)

        grid = logsnr_grid(schedules.CosineSchedule(), 5, spacing="karras")
        # As `Sampler` does it: mapped over samples, with one grid.
        run = jax.vmap(lambda z: sample(jax.random.key(0), counted, rule, grid, z[None])[0])
        jax.jit(run)(jnp.ones((1, len(MEAN)))).block_until_ready()
        jax.effects_barrier()
        return len(seen)

    assert calls(solvers.DPMPP2M()) == calls(Distilled()) == 5
    assert calls(solvers.DPMPP2S()) == calls(solvers.Heun()) == calls(solvers.FlowHeun()) == 9
    assert calls(solvers.FlowMidpoint()) == 10
    assert calls(Corrector(rule=DDIM())) == 9
