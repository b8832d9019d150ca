"""Inversion on Gaussian data, where the ODE from data to noise is known in closed form.

Along an eigenvector of the covariance, of variance V, (z − α μ)/√(α² V + σ²) is constant on the
probability-flow ODE.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.diffusion import test_gaussian as gaussian
from vdm_jax.diffusion import inversion, predictions, samplers, solvers
from vdm_jax.diffusion.inversion import FirstOrder, FixedPoint, SecondOrder
from vdm_jax.diffusion.process import Process

COUNTS = (16, 32, 64)
X = (
    gaussian.MEAN + (gaussian.WHITE[:16] * np.sqrt(gaussian.VARIANCES)) @ gaussian.ROTATION.T
).astype(np.float32)
# For a peak to peak of 2, as videos in [−1, 1] have.
PEAK = 2.0
DENOISER = Process(prediction="v").denoiser(gaussian.gaussian_network("v"))


@functools.cache
def compiled(method, rule, kinds):
    """(grids, x, number of a prediction kind) -> (z where each grid begins, the rule's samples).

    kinds: whether the network may have any kind; else it predicts v.
    """
    denoiser = gaussian.gaussian_denoiser if kinds else DENOISER

    def run(logsnrs, x, kind):
        z = inversion.invert(denoiser, method, rule, logsnrs, x, kind)
        return z, samplers.sample(jax.random.key(0), denoiser, rule, logsnrs, z, kind)

    return jax.jit(jax.vmap(run, in_axes=(0, None, None)))


@functools.cache
def grids():
    """The grids of all schedules, for each of `COUNTS`, `[count, schedule, steps + 1]`."""
    return np.stack(
        [[gaussian.pad(g, COUNTS[-1]) for g in gaussian.all_grids(n)] for n in COUNTS]
    ).astype(np.float32)


@functools.cache
def run(method, rule, kind=None):
    """z and the samples, `[count, schedule, n, DIM]`; kind: None = v, without the others."""
    every, x = grids(), X.reshape(-1, *gaussian.SHAPE)
    flat = jnp.asarray(every.reshape(-1, every.shape[-1]))
    found = compiled(method, rule, kind is not None)(flat, x, predictions.KINDS.index(kind or "v"))
    shape = (*every.shape[:2], -1, gaussian.DIM)
    return tuple(np.asarray(part, np.float64).reshape(shape) for part in found)


def exact(logsnr):
    """z on the ODE through X, at each of several λ."""
    alpha, sigma = (np.sqrt(1 / (1 + np.exp(sign * logsnr)))[..., None, None] for sign in (-1, 1))
    along = (X - gaussian.MEAN) @ gaussian.ROTATION / np.sqrt(gaussian.VARIANCES)
    deviation = np.sqrt(alpha**2 * gaussian.VARIANCES + sigma**2)
    return alpha * gaussian.MEAN + (along * deviation) @ gaussian.ROTATION.T


def error(found, expected):
    """Root mean square over examples and elements."""
    return np.sqrt(np.mean((found - expected) ** 2, axis=(-2, -1)))


def psnr(found):
    return 20 * np.log10(PEAK / error(found, X))


@pytest.mark.parametrize(("method", "order"), [(FirstOrder(), 1), (SecondOrder(), 2)])
def test_z_is_on_the_ode_with_the_error_of_the_methods_order(method, order):
    expected = exact(np.asarray(grids()[..., 0], np.float64))
    # The last step of this schedule's grids shrinks as 1/√steps in the angle, not as 1/steps.
    regular = [name != "scaled_linear_beta" for name in gaussian.SCHEDULES]
    for kind in predictions.KINDS:
        errors = error(run(method, samplers.DDIM(), kind)[0], expected)
        assert errors[-1].max() < 0.13 / 4 ** (order - 1)
        slopes = np.log2(errors[:-1] / errors[1:])
        assert np.all(slopes > 0.6), (kind, slopes)
        assert np.all(slopes[-1, regular] > order - 0.25), (kind, slopes)
        assert np.all(slopes[-1, regular] < order + 0.5), (kind, slopes)


@pytest.mark.parametrize(
    ("rule", "least"),
    [
        (samplers.DDIM(), [120, 120, 120]),
        (samplers.DDIM(form="angular"), [120, 120, 120]),
        # In few steps a step of second order is far from the identity: slow convergence.
        (solvers.Heun(), [30, 100, 110]),
    ],
)
def test_a_fixed_point_is_the_rules_own_inverse_up_to_rounding(rule, least):
    found = psnr(run(FixedPoint(), rule)[1])
    assert np.all(found.min(axis=1) > least), found


def test_round_trips_improve_with_steps_and_fixed_points_are_best():
    first, second, fixed = (
        psnr(run(method, samplers.DDIM())[1])
        for method in (FirstOrder(), SecondOrder(), FixedPoint())
    )
    for found in (first, second):
        assert np.all(np.diff(found, axis=0) > 0), found
        assert np.all(found < 60), found
    assert np.all(fixed > 120), fixed
    assert np.all(second > first), (first, second)


@pytest.mark.parametrize(
    "rule",
    [
        samplers.DDIM(eta=0.5),
        samplers.Ancestral(),
        solvers.DPMPP2M(),
        solvers.Euler(churn=1.0),
        samplers.make_rule("unipc"),
        samplers.make_rule("plms"),
        samplers.Corrector(rule=samplers.DDIM()),
    ],
)
def test_rules_without_an_inverse_are_refused(rule):
    assert not inversion.is_invertible(rule)
    with pytest.raises(ValueError, match="draws noise or remembers earlier steps"):
        inversion.invert(DENOISER, FirstOrder(), rule, jnp.asarray([0.0, 1.0]), jnp.zeros((1, 2)))


def test_bad_values_are_named():
    with pytest.raises(ValueError, match="iterations = 0: must be at least 1"):
        FixedPoint(iterations=0)
    with pytest.raises(ValueError, match="memory = -1: must not be negative"):
        FixedPoint(memory=-1)
    with pytest.raises(ValueError, match="inversion = 'third': allowed are first, second, fixed"):
        inversion.make_inversion("third")
    with pytest.raises(ValueError, match=r"logsnrs has shape \(1,\)"):
        inversion.invert(
            DENOISER, FirstOrder(), samplers.DDIM(), jnp.asarray([0.0]), jnp.zeros((1, 2))
        )
