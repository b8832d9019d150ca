"""Reused predictions: which steps are computed, and what is lost, on data with a known optimal
denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import samplers, schedules, solvers
from vdm_jax.diffusion.predictions import to_prediction
from vdm_jax.diffusion.reuse import Reuse, computed_steps
from vdm_jax.diffusion.schedules import alpha_sigma

DEVIATION, STEPS = 0.3, 40


def test_a_step_is_computed_when_changes_add_up_to_the_threshold():
    levels = jnp.array([1.0, 1.1, 1.21, 1.331, 1.4641, 1.61051, 1.7])[:, None]  # 10% a step
    np.testing.assert_array_equal(computed_steps(levels, 0.0), np.ones(7, bool))
    wanted = [True, False, True, False, True, False, True]
    np.testing.assert_array_equal(computed_steps(levels, 0.19), wanted)
    wanted = [True, False, False, False, False, False, True]
    np.testing.assert_array_equal(computed_steps(levels, 9.0), wanted)


def denoiser(z, logsnr, cond):
    """Optimal for independent normal values of deviation DEVIATION."""
    alpha, sigma = (coefficient[:, None] for coefficient in alpha_sigma(logsnr))
    variance = alpha**2 * DEVIATION**2 + sigma**2
    return to_prediction("x", alpha * DEVIATION**2 / variance * z, z, logsnr)


@pytest.fixture(scope="module")
def run():
    logsnrs = schedules.RectifiedFlowSchedule()(jnp.linspace(1.0, 0.0, STEPS + 1))
    z = jax.random.normal(jax.random.key(0), (4, 16))
    # Stands for a network's: it moves evenly in the flow's time.
    embeddings = 1.0 + schedules.flow_time(logsnrs[:-1])[:, None]

    @jax.jit
    def with_threshold(threshold):
        rule = Reuse(rule=solvers.FlowEuler(), threshold=0.0)
        rule = rule.at(logsnrs[:-1], embeddings)
        computed = computed_steps(embeddings, threshold)
        rule = Reuse(rule=rule.rule, threshold=0.0, logsnrs=rule.logsnrs, computed=computed)
        found = samplers.sample(jax.random.key(1), denoiser, rule, logsnrs, z)
        return found, computed.sum()

    plain = jax.jit(
        lambda: samplers.sample(jax.random.key(1), denoiser, solvers.FlowEuler(), logsnrs, z)
    )
    return with_threshold, plain()


def test_the_error_grows_with_the_steps_that_are_left_out(run):
    with_threshold, plain = run
    found, count = with_threshold(0.0)
    assert count == STEPS
    np.testing.assert_allclose(found, plain, atol=1e-6)
    errors, counts = [], []
    for threshold in (0.03, 0.1, 0.3):
        found, count = with_threshold(threshold)
        errors.append(float(jnp.abs(found - plain).mean() / jnp.abs(plain).mean()))
        counts.append(int(count))
    assert STEPS > counts[0] > counts[1] > counts[2]
    assert 0 < errors[0] < errors[1] < errors[2]
    assert counts[0] <= STEPS // 2 + 2 and errors[0] < 0.05


def test_a_rule_that_evaluates_twice_is_refused():
    rule = Reuse(rule=solvers.FlowHeun(), threshold=0.1)
    rule = rule.at(jnp.array([-1.0, 1.0]), jnp.ones((2, 1)))
    z = jnp.ones((1, 2))
    with pytest.raises(ValueError, match="reuse: this sampler evaluates the network several times"):
        samplers.sample(jax.random.key(0), denoiser, rule, jnp.array([-1.0, 1.0, jnp.inf]), z)
    with pytest.raises(ValueError, match="reuse = -1.0: must not be negative"):
        Reuse(rule=solvers.FlowEuler(), threshold=-1.0)
