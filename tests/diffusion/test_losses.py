import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import losses, predictions
from vdm_jax.diffusion.predictions import to_prediction
from vdm_jax.diffusion.schedules import alpha_sigma

LOGSNR = jnp.array([-6.0, -2.0, -0.5, 0.0, 0.5, 1.0, 2.0, 6.0])
SNR = np.exp(np.asarray(LOGSNR, np.float64))


@pytest.fixture(scope="module")
def case():
    x, eps, wrong = jax.random.normal(jax.random.key(0), (3, len(LOGSNR), 2, 3, 3, 1))
    alpha, sigma = (c.reshape(-1, 1, 1, 1, 1) for c in alpha_sigma(LOGSNR))
    z = alpha * x + sigma * eps
    prediction = to_prediction("x", x + 0.3 * wrong, z, LOGSNR)
    squared = np.square(0.3 * np.asarray(wrong, np.float64)).reshape(len(LOGSNR), -1).mean(1)
    return (prediction, x, eps, LOGSNR), squared


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("x_mse", np.ones_like(SNR)),
        ("eps_mse", SNR),
        ("v_mse", 1 + SNR),
        ("velocity_mse", (1 + np.sqrt(SNR)) ** 2),
        ("truncated_snr", np.maximum(SNR, 1)),
        ("min_snr_gamma", np.minimum(SNR, 5)),
        ("edm", (1 / SNR + 0.5**2) / (1 / SNR * 0.5**2)),  # (σ² + σ_d²)/(σ σ_d)², σ² = 1/SNR
    ],
)
def test_every_loss_is_its_published_weight_on_the_error_of_x(case, name, weight):
    arguments, squared = case
    loss = losses.make_loss(name)(*arguments)
    assert loss.shape == LOGSNR.shape
    np.testing.assert_allclose(loss, weight * squared, rtol=2e-4)


def test_parameters_reach_the_losses_that_have_them(case):
    arguments, squared = case
    loss = losses.make_loss("min_snr_gamma", gamma=1.5)(*arguments)
    np.testing.assert_allclose(loss, np.minimum(SNR, 1.5) * squared, rtol=2e-4)
    # With unit data EDM's weight is v's: (1 + σ²)/σ² = 1 + SNR.
    np.testing.assert_allclose(
        losses.make_loss("edm", sigma_data=1.0)(*arguments), losses.v_mse(*arguments), rtol=2e-4
    )


def test_losses_of_every_kind_are_finite_with_finite_gradients_at_the_ends():
    logsnr = jnp.array([-20.0, 0.0, 20.0])
    x, eps = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 4)), jnp.float32)
    alpha, sigma = (c[:, None] for c in alpha_sigma(logsnr))
    z = alpha * x + sigma * eps
    cases = [(kind, name) for kind in predictions.KINDS for name in losses.LOSSES]

    def values(offset):
        wrong = {k: offset + predictions.target(k, x, eps, logsnr) for k in predictions.KINDS}
        beliefs = {k: to_prediction(k, output, z, logsnr) for k, output in wrong.items()}
        return jnp.stack(
            [jnp.sum(losses.make_loss(name)(beliefs[k], x, eps, logsnr)) for k, name in cases]
        )

    # One compilation: a gradient that is not finite makes the gradient of the sum so.
    both = jax.jit(lambda offset: (values(offset), jax.grad(lambda o: jnp.sum(values(o)))(offset)))
    for offset in (0.0, 0.1):
        loss, gradient = both(offset)
        assert np.isfinite(gradient)
        for case, value in zip(cases, loss, strict=True):
            assert np.isfinite(value), case
            # A perfect prediction of v, or flow velocity, has none.
            assert offset or case[0] not in ("v", "velocity") or value < 1e-9, case


def test_unknown_loss():
    with pytest.raises(ValueError, match=r"loss='mse' is unknown; allowed: v_mse, eps_mse"):
        losses.make_loss("mse")


@pytest.mark.parametrize("n", [1, 7, 64])
def test_low_discrepancy_times_cover_every_stratum_once(n):
    times = jax.vmap(lambda key: losses.low_discrepancy_times(key, n))(
        jax.random.split(jax.random.key(0), 50)
    )
    assert times.min() >= 0
    assert times.max() <= 1
    # Within a draw the samples are n equal gaps apart, so one is in each stratum.
    strata = np.sort(np.floor(np.asarray(times, np.float64) * n).astype(int), axis=1)
    np.testing.assert_array_equal(strata, np.tile(np.arange(n), (50, 1)))


def test_each_low_discrepancy_time_is_uniform_by_itself():
    keys = jax.random.split(jax.random.key(1), 4000)
    times = jax.vmap(lambda key: losses.low_discrepancy_times(key, 8))(keys)
    # Standard error of a mean of 4000 uniform numbers: 0.0046; of their mean square: 0.0047.
    np.testing.assert_allclose(times.mean(0), 0.5, atol=5 * 0.0046)
    np.testing.assert_allclose(jnp.square(times).mean(0), 1 / 3, atol=5 * 0.0047)
