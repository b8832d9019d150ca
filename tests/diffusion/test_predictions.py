import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.predictions import KINDS, Prediction, target, to_prediction
from vdm_jax.diffusion.schedules import alpha_sigma

SHAPE = (2, 2, 2, 1)
LOGSNRS = jnp.array([-jnp.inf, *np.linspace(-20.0, 20.0, 41), jnp.inf])


@functools.cache
def problem(seed=0):
    """x, ε of every λ of the sweep, and z computed in double precision."""
    generator = np.random.default_rng(seed)
    x, eps = generator.uniform(-1, 1, (2, len(LOGSNRS), *SHAPE))
    eps = generator.normal(size=eps.shape)
    alpha, sigma = (np.asarray(c, np.float64).reshape(-1, 1, 1, 1, 1) for c in alpha_sigma(LOGSNRS))
    z = alpha * x + sigma * eps
    return tuple(jnp.asarray(a, jnp.float32) for a in (x, eps, z))


convert = jax.jit(to_prediction, static_argnums=0)
ROUNDING = 1e-6  # a few units in the last place of numbers up to 4
ALPHA, SIGMA = (np.asarray(c)[:, None] for c in alpha_sigma(LOGSNRS))


def error(actual, expected):
    """Largest error of each example of the sweep."""
    return np.abs(np.asarray(actual) - np.asarray(expected)).reshape(len(LOGSNRS), -1).max(1)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_recovers_x_and_eps_over_the_whole_range(kind, seed):
    x, eps, z = problem(seed)
    prediction = convert(kind, target(kind, x, eps, LOGSNRS), z, LOGSNRS)
    assert all(np.all(np.isfinite(field)) for field in (prediction.x, prediction.eps))
    inverse_alpha = 1 / np.maximum(ALPHA[:, 0], 1e-30)
    inverse_sigma = 1 / np.maximum(SIGMA[:, 0], 1e-30)
    determined = np.isfinite(LOGSNRS)
    x_error, eps_error = error(prediction.x, x), error(prediction.eps, eps)
    if kind in ("v", "velocity"):
        # Exact everywhere, ±inf included.
        assert x_error.max() < ROUNDING
        assert eps_error.max() < ROUNDING
    elif kind == "x":
        assert x_error.max() == 0
        assert np.all((eps_error < ROUNDING * inverse_sigma) | ~determined)
        np.testing.assert_allclose(prediction.eps[0], eps[0], atol=ROUNDING)  # λ = −inf: ε = z
        np.testing.assert_array_equal(prediction.eps[-1], 0.0)
    else:
        assert np.all((x_error < ROUNDING * inverse_alpha) | ~determined)
        np.testing.assert_allclose(prediction.x[-1], x[-1], atol=ROUNDING)  # λ = +inf: x = z
        np.testing.assert_array_equal(prediction.x[0], 0.0)
        assert eps_error[:-1].max() < ROUNDING


@pytest.mark.parametrize("source", KINDS)
def test_every_kind_converts_into_every_other_and_back(source):
    x, eps, z = problem()
    inner = np.abs(np.asarray(LOGSNRS)) <= 8  # where no kind multiplies rounding by more than 55
    first = convert(source, target(source, x, eps, LOGSNRS), z, LOGSNRS)
    for kind in KINDS:
        again = convert(kind, getattr(first, kind), z, LOGSNRS)
        np.testing.assert_allclose(again.x[inner], x[inner], atol=3e-4, err_msg=kind)
        np.testing.assert_allclose(again.eps[inner], eps[inner], atol=3e-4, err_msg=kind)
        wanted = target(source, x, eps, LOGSNRS)[inner]
        np.testing.assert_allclose(
            getattr(again, source)[inner], wanted, rtol=1e-3, atol=1e-3, err_msg=kind
        )


def test_targets_are_the_published_formulas():
    x, eps, _ = problem()
    alpha, sigma = (c.reshape(-1, 1, 1, 1, 1) for c in (ALPHA, SIGMA))
    np.testing.assert_allclose(target("v", x, eps, LOGSNRS), alpha * eps - sigma * x, atol=1e-6)
    np.testing.assert_array_equal(target("velocity", x, eps, LOGSNRS), eps - x)
    finite = slice(0, -1)
    np.testing.assert_allclose(
        target("score", x, eps, LOGSNRS)[finite], (-eps / sigma)[finite], rtol=1e-5
    )


def test_score_is_the_gradient_of_the_log_density():
    # p(z | x) = N(α x, σ²): its score is −(z − α x)/σ².
    logsnr = jnp.array([-2.0, 0.0, 3.0])
    x, eps = jax.random.normal(jax.random.key(0), (2, 3, 4))
    alpha, sigma = (c[:, None] for c in alpha_sigma(logsnr))
    z = alpha * x + sigma * eps

    def log_density(z):
        return jnp.sum(-0.5 * jnp.square((z - alpha * x) / sigma))

    prediction = to_prediction("x", x, z, logsnr)
    np.testing.assert_allclose(prediction.score, jax.grad(log_density)(z), rtol=1e-5, atol=1e-5)


def test_velocity_is_the_time_derivative_of_the_flow():
    x, eps = jax.random.normal(jax.random.key(0), (2, 4, 3))
    t = jnp.array([0.1, 0.3, 0.6, 0.9])
    z_rf, tangent = jax.jvp(lambda t: (1 - t)[:, None] * x + t[:, None] * eps, (t,), (jnp.ones(4),))
    logsnr = 2 * jnp.log((1 - t) / t)
    z = z_rf * sum(alpha_sigma(logsnr))[:, None]
    np.testing.assert_allclose(to_prediction("x", x, z, logsnr).velocity, tangent, atol=1e-5)


def test_with_x_and_with_eps_keep_z():
    x, eps, z = problem()
    inner = slice(8, -8)
    prediction = convert("v", target("v", x, eps, LOGSNRS), z, LOGSNRS)
    alpha, sigma = (c.reshape(-1, 1, 1, 1, 1) for c in (ALPHA, SIGMA))
    for changed in (prediction.with_x(0.5 * x), prediction.with_eps(0.5 * eps)):
        np.testing.assert_array_equal(changed.z, z)
        np.testing.assert_allclose(
            (alpha * changed.x + sigma * changed.eps)[inner], z[inner], rtol=1e-4, atol=1e-4
        )
    np.testing.assert_array_equal(prediction.with_x(0.5 * x).x, 0.5 * x)
    np.testing.assert_array_equal(prediction.with_eps(0.5 * eps).eps, 0.5 * eps)


def test_prediction_is_a_pytree_and_float32_whatever_the_network_gives():
    output = jnp.ones((2, 3), jnp.bfloat16)
    prediction = to_prediction("v", output, output, jnp.zeros(2))
    assert {leaf.dtype for leaf in jax.tree.leaves(prediction)} == {jnp.dtype("float32")}
    doubled = jax.tree.map(lambda a: 2 * a, prediction)
    assert isinstance(doubled, Prediction)
    np.testing.assert_array_equal(doubled.z, 2.0)


def test_wrong_kinds_and_shapes_are_refused():
    z, logsnr = jnp.zeros((2, 3)), jnp.zeros(2)
    with pytest.raises(
        ValueError, match=r"'noise' is unknown; allowed: x, eps, v, score, velocity"
    ):
        to_prediction("noise", z, z, logsnr)
    with pytest.raises(ValueError, match="unknown"):
        target("noise", z, z, logsnr)
    with pytest.raises(ValueError, match=r"\(2, 4\).*\(2, 3\)"):
        to_prediction("v", jnp.zeros((2, 4)), z, logsnr)
