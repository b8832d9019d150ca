import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import samplers, schedules, solvers
from vdm_jax.diffusion.plms import PLMS
from vdm_jax.diffusion.predictions import to_prediction
from vdm_jax.diffusion.samplers import (
    DDIM,
    Ancestral,
    Consistency,
    Corrector,
    Distilled,
    logsnr_grid,
    make_rule,
    sample,
)
from vdm_jax.diffusion.schedules import alpha_sigma
from vdm_jax.diffusion.unipc import UniPC

RULES = [DDIM(), DDIM(form="angular"), DDIM(eta=0.7), Ancestral(), Ancestral(gamma=1.0)]
# The rest of `samplers.RULES`, which `test_solvers.py` holds to the papers' formulas.
SOLVERS = [
    solvers.DPMPP2M(),
    solvers.DPMPP2MSDE(),
    solvers.DPMPP2S(),
    solvers.Euler(),
    solvers.Heun(),
    solvers.FlowEuler(),
    solvers.FlowHeun(),
    UniPC(),
    PLMS(),
    Distilled(),
    Consistency(),
    Corrector(rule=DDIM()),
]
MORE = [solvers.Euler(churn=0.5), solvers.Heun(churn=0.5), solvers.FlowMidpoint()]
VARIANCE = 0.25


def denoiser(z, logsnr, cond):
    """Optimal for x ~ N(0, VARIANCE) in every element."""
    alpha, sigma = (schedules.expand(c, z.ndim) for c in alpha_sigma(logsnr))
    return to_prediction(
        "v", z * alpha * sigma * (1 - VARIANCE) / (alpha**2 * VARIANCE + sigma**2), z, logsnr
    )


def noise(*shape):
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def one_step(rule, z, t, s, key=0):
    """The rule's step from `t` to `s`, and the x̂ that it was given."""

    def denoise(z, logsnr):
        return denoiser(z, jnp.broadcast_to(logsnr, z.shape[:1]), None)

    t, s = jnp.float32(t), jnp.float32(s)
    step = jax.jit(lambda key, z: rule.step(key, denoise, z, rule.init(z), t, s)[0])
    return step(jax.random.key(key), z), denoise(z, t).x


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("t", "s"), [(-3.0, -1.0), (1.0, 1.5)])
def test_ancestral_step_is_vdms_posterior(gamma, t, s):
    n = 40_000
    z = jnp.full((n, 1), 0.8)
    out, x = one_step(Ancestral(gamma=gamma), z, t, s)
    alpha_t, sigma_t, alpha_s, sigma_s = (
        float(c) for level in (t, s) for c in alpha_sigma(jnp.float32(level))
    )
    ratio = np.exp(t - s)
    mean = ratio * alpha_s / alpha_t * 0.8 + (1 - ratio) * alpha_s * float(x[0, 0])
    variance = ((1 - ratio) * sigma_s**2) ** (1 - gamma) * ((1 - ratio) * sigma_t**2) ** gamma
    # Five standard errors: σ/√n of the mean, √(2/n) of the variance, relative.
    np.testing.assert_allclose(out.mean(), mean, atol=5 * np.sqrt(variance / n))
    np.testing.assert_allclose(out.var(), variance, rtol=5 * np.sqrt(2 / n))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_step_is_equation_twelve(eta):
    n, t, s = 40_000, -1.0, 0.5
    z = jnp.full((n, 1), 0.8)
    out, x = one_step(DDIM(eta=eta), z, t, s)
    alpha_t, sigma_t, alpha_s, sigma_s = (
        float(c) for level in (t, s) for c in alpha_sigma(jnp.float32(level))
    )
    variance = eta**2 * (sigma_s / sigma_t) ** 2 * (1 - (alpha_t / alpha_s) ** 2)
    eps = (0.8 - alpha_t * float(x[0, 0])) / sigma_t
    mean = alpha_s * float(x[0, 0]) + np.sqrt(sigma_s**2 - variance) * eps
    np.testing.assert_allclose(out.mean(), mean, atol=5 * np.sqrt(variance / n) + 1e-6)
    np.testing.assert_allclose(out.var(), variance, rtol=5 * np.sqrt(2 / n), atol=1e-9)


@pytest.mark.parametrize("rule", RULES + SOLVERS, ids=repr)
def test_the_step_to_clean_data_returns_x_exactly(rule):
    z = noise(4, 3)
    out, x = one_step(rule, z, -1.0, np.inf)
    np.testing.assert_allclose(out, x, atol=2e-7)


@pytest.mark.parametrize("level", [-np.inf, -20.0, 0.0, 20.0, np.inf])
@pytest.mark.parametrize("rule", RULES + SOLVERS + MORE, ids=repr)
def test_a_step_of_no_length_changes_nothing(rule, level):
    z = noise(4, 3)
    np.testing.assert_allclose(one_step(rule, z, level, level)[0], z, atol=1e-6)


def scans(jaxpr):
    return [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]


@pytest.mark.parametrize("rule", RULES[:1] + RULES[3:4] + SOLVERS + MORE, ids=repr)
def test_sampling_is_one_scan_that_stacks_nothing(rule):
    grid = logsnr_grid(schedules.CosineSchedule(), 50)
    jaxpr = jax.make_jaxpr(lambda key, grid, z: sample(key, denoiser, rule, grid, z))(
        jax.random.key(0), grid, noise(2, 3)
    )
    (scan,) = scans(jaxpr)
    assert scan.params["length"] == 50
    assert len(scan.outvars) == scan.params["num_carry"]


def test_the_grid_is_an_argument_of_the_compiled_sampler():
    traces = []

    def counted(z, logsnr, cond):
        traces.append(logsnr.shape)
        return denoiser(z, logsnr, cond)

    run = jax.jit(lambda grid, z: sample(jax.random.key(0), counted, DDIM(), grid, z))
    for name in ("cosine", "linear_beta", "rectified_flow"):
        run(logsnr_grid(schedules.make_schedule(name), 8), noise(2, 3)).block_until_ready()
    assert traces == [(2,)]


def test_callback_reports_every_step_in_order():
    reports = []
    grid = logsnr_grid(schedules.CosineSchedule(), 5)
    run = jax.jit(
        lambda z: sample(
            jax.random.key(0),
            denoiser,
            Ancestral(),
            grid,
            z,
            callback=lambda step, steps: reports.append((step, steps)),
        )
    )
    with_callback = run(noise(2, 3))
    jax.effects_barrier()
    assert reports == [(1, 5), (2, 5), (3, 5), (4, 5), (5, 5)]
    without = sample(jax.random.key(0), denoiser, Ancestral(), grid, noise(2, 3))
    np.testing.assert_allclose(with_callback, without, atol=1e-6)


@pytest.mark.parametrize("name", samplers.RULES)
def test_what_is_believed_at_every_step_can_be_watched(name):
    """Of every rule, also behind a corrector: x̂ of the z that the step begins with."""
    rule, grid, seen = make_rule(name), logsnr_grid(schedules.CosineSchedule(), 3), []
    if name != "distilled":
        rule = Corrector(rule=rule, delta=0.1)

    def watch(step, x):
        jax.debug.callback(lambda i, x: seen.append((int(i), np.asarray(x))), step, x)

    z = noise(2, 3)
    watched = jax.jit(lambda z: sample(jax.random.key(0), denoiser, rule, grid, z, watch=watch))
    end = watched(z)
    jax.effects_barrier()
    steps, beliefs = zip(*sorted(seen, key=lambda pair: pair[0]), strict=True)
    assert steps == (1, 2, 3)
    first = denoiser(z, jnp.broadcast_to(grid[0], (2,)), None).x
    np.testing.assert_allclose(beliefs[0], first, atol=1e-5)
    assert np.abs(beliefs[2] - beliefs[0]).max() > 1e-3
    if name in ("ddim", "ancestral", "consistency", "distilled"):
        np.testing.assert_allclose(beliefs[2], end, atol=1e-5)  # the last step returns x̂


def test_the_key_decides_the_noise():
    grid = logsnr_grid(schedules.CosineSchedule(), 5)
    run = jax.jit(lambda key, z: sample(key, denoiser, Ancestral(), grid, z))
    first, again, other = (run(jax.random.key(seed), noise(2, 3)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).min() > 1e-4


def test_condition_reaches_the_denoiser_in_every_step():
    def shifted(z, logsnr, cond):
        return to_prediction("x", jnp.broadcast_to(cond["mean"][:, None], z.shape), z, logsnr)

    grid = logsnr_grid(schedules.CosineSchedule(), 5)
    mean = jnp.array([-0.5, 0.25])
    out = sample(jax.random.key(0), shifted, DDIM(), grid, noise(2, 3), {"mean": mean})
    np.testing.assert_allclose(out, np.tile(mean[:, None], (1, 3)), atol=1e-6)


def test_every_rule_has_a_name_and_the_interface():
    assert {type(rule) for rule in RULES + SOLVERS + MORE} == {
        *samplers.RULES.values(),
        Corrector,
    }
    assert all(isinstance(rule, samplers.Rule) for rule in RULES + SOLVERS + MORE)


def test_bad_settings_are_refused():
    assert make_rule("ddim", eta=0.5) == DDIM(eta=0.5)
    assert make_rule("ancestral") == Ancestral(gamma=0.3)
    with pytest.raises(ValueError, match=r"sampler='rk4' is unknown; allowed: ddim, ancestral"):
        make_rule("rk4")
    with pytest.raises(ValueError, match=r"no field gamma; allowed: eta, form"):
        make_rule("ddim", gamma=0.3)
    with pytest.raises(ValueError, match=r"eta=1\.5 must be in \[0, 1\]"):
        DDIM(eta=1.5)
    with pytest.raises(ValueError, match=r"form='polar'.*x_eps, angular"):
        DDIM(form="polar")
    with pytest.raises(ValueError, match=r"gamma=-0\.1"):
        Ancestral(gamma=-0.1)
    assert make_rule("heun", churn=2.0, steps=4) == solvers.Heun(churn=2.0, steps=4)
    with pytest.raises(ValueError, match=r"no field eta; allowed: none"):
        make_rule("dpmpp_2m", eta=0.5)
    with pytest.raises(ValueError, match=r"Heun: churn=-1\.0 must be at least 0"):
        make_rule("heun", churn=-1.0)
    with pytest.raises(ValueError, match=r"churn_min=3\.0, churn_max=2\.0 must satisfy"):
        make_rule("euler", churn_min=3.0, churn_max=2.0)
    with pytest.raises(ValueError, match=r"churn_noise=-1\.0"):
        make_rule("euler", churn_noise=-1.0)
    with pytest.raises(ValueError, match=r"steps=0"):
        make_rule("euler", steps=0)
    with pytest.raises(ValueError, match=r"delta=2\.0 must be in \[0, 2\)"):
        Corrector(rule=DDIM(), delta=2.0)
    with pytest.raises(ValueError, match="'distilled' takes no corrector"):
        Corrector(rule=Distilled())
    with pytest.raises(ValueError, match=r"shape \(1,\)"):
        sample(jax.random.key(0), denoiser, DDIM(), jnp.zeros(1), jnp.zeros((1, 1)))
