"""UniPC against the paper's formulas, step by step in float64, and its order."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import samplers
from vdm_jax.diffusion.predictions import to_prediction
from vdm_jax.diffusion.unipc import UniPC

MEAN, VARIANCE = 0.4, np.array([0.05, 0.3, 2.0])


def alpha_sigma(logsnr):
    return np.sqrt(1 / (1 + np.exp(-logsnr))), np.sqrt(1 / (1 + np.exp(logsnr)))


def best_x(z, logsnr):
    """The expectation of x ~ N(MEAN, VARIANCE) given z."""
    alpha, sigma = alpha_sigma(logsnr)
    gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    return MEAN + gain * (z - alpha * MEAN)


def denoiser(z, logsnr, cond):
    alpha, sigma = jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))
    alpha, sigma = alpha[:, None], sigma[:, None]
    gain = alpha * VARIANCE / (alpha**2 * VARIANCE + sigma**2)
    return to_prediction("x", MEAN + gain * (z - alpha * MEAN), z, logsnr)


def paper(z, levels, order, variant):
    """Algorithms 5 and 6 with data prediction; the linear systems of equation 11 are solved."""
    half = [level / 2 for level in levels]
    xs, places, begin = [], [], None
    for i, here in enumerate(levels[:-1]):
        x = best_x(z, here)
        if xs:
            at = half.index(here / 2)
            z = update(begin, xs, places, half, at, variant, len_used(order, len(xs)), x)
        xs, places, begin = [*xs, x], [*places, i], z
        last = not np.isfinite(levels[i + 1])
        used = 1 if last else len_used(order, len(xs))
        z = update(begin, xs, places, half, i + 1, variant, used, None)
    return z


def len_used(order, available):
    return min(order, available)


def update(begin, xs, places, half, to, variant, order, corrected):
    """From the last place to `to`, with `order` predictions and perhaps that at the end."""
    start = half[places[-1]]
    h = half[to] - start
    (_, sigma), (alpha_to, sigma_to) = alpha_sigma(2 * start), alpha_sigma(2 * half[to])
    phi = np.expm1(-h)
    base = sigma_to / sigma * begin - alpha_to * phi * xs[-1]
    ratios = [(half[places[-1 - k]] - start) / h for k in range(1, order)]
    differences = [(xs[-1 - k] - xs[-1]) / r for k, r in zip(range(1, order), ratios, strict=True)]
    if corrected is not None:
        ratios, differences = [*ratios, 1.0], [*differences, corrected - xs[-1]]
    if not ratios:
        return base
    scale = phi if variant == "bh2" else -h
    moments, moment, factorial = [], phi / -h - 1, 1
    for k in range(1, len(ratios) + 1):
        moments.append(moment * factorial / scale)
        factorial *= k + 1
        moment = moment / -h - 1 / factorial
    if len(ratios) == 1:
        rhos = [0.5]  # as published, whatever the moments are
    else:
        rhos = np.linalg.solve(np.vander(ratios, increasing=True).T, moments)
    total = sum(rho * one for rho, one in zip(rhos, differences, strict=True))
    return base - alpha_to * scale * total


@functools.cache
def compiled(rule):
    @jax.jit
    def run(levels, z):
        return samplers.sample(jax.random.key(0), denoiser, rule, levels, z)

    return run


@pytest.mark.parametrize("rule", [UniPC(), UniPC(variant="bh1"), UniPC(order=1)], ids=repr)
@pytest.mark.parametrize("end", [6.0, np.inf])
def test_steps_are_the_papers(rule, end):
    levels = np.array([-8.0, -5.0, -3.5, -1.0, 0.0, 2.5, 4.0, end])
    z = np.random.default_rng(0).normal(size=(2, 3))
    found = compiled(rule)(jnp.asarray(levels, jnp.float32), jnp.asarray(z, jnp.float32))
    wanted = paper(z, levels, rule.order, rule.variant)
    np.testing.assert_allclose(found, wanted, atol=2e-5)


def test_equal_levels_change_nothing():
    levels = np.array([-8.0, -5.0, -3.5, -1.0, 0.0, 2.5, 4.0, np.inf], np.float32)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
    repeated = np.repeat(levels, [1, 1, 3, 1, 2, 1, 1, 1])
    run = compiled(UniPC())
    np.testing.assert_allclose(run(repeated, z), run(levels, z), atol=1e-6)


@pytest.mark.parametrize(("rule", "order"), [(UniPC(order=1), 2), (UniPC(), 2)], ids=repr)
def test_the_order(rule, order):
    """The corrector adds one to the predictor's; published data prediction keeps 2 with both."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 3)), jnp.float32)
    alpha, sigma = alpha_sigma(np.array([-4.0, 4.0]))
    deviation = np.sqrt(alpha**2 * VARIANCE[:, None] + sigma**2)
    exact = alpha[1] * MEAN + (z - alpha[0] * MEAN) * deviation[:, 1] / deviation[:, 0]

    def error(steps):
        found = compiled(rule)(jnp.linspace(-4.0, 4.0, steps + 1), z)
        return np.sqrt(np.mean((found - exact) ** 2))

    slope = np.log2(error(8) / error(16))
    assert slope > order - 0.3


@pytest.mark.parametrize("begin", [-np.inf, -4.0])
def test_every_end_is_finite_with_finite_gradients(begin):
    levels = jnp.array([begin, 0.0, 1.0, 3.0, jnp.inf])
    for variant in ("bh1", "bh2"):
        run = compiled(UniPC(variant=variant))
        value, gradient = jax.value_and_grad(lambda z, run=run: run(levels, z).sum())(
            jnp.ones((1, 3))
        )
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_fields_out_of_range_are_refused():
    with pytest.raises(ValueError, match="UniPC: order=3 must be 1 or 2"):
        UniPC(order=3)
    with pytest.raises(ValueError, match="UniPC: variant='bh3' is unknown"):
        UniPC(variant="bh3")
    assert samplers.make_rule("unipc") == UniPC()
