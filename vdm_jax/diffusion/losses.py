"""Training losses, each a mean square over an example's elements: `[b, ...]` to `[b]`.

They are one another's reweightings, since the errors of x̂ and ε̂ are tied by z:
ε_mse = SNR · x_mse, v_mse = (1 + SNR) · x_mse and velocity_mse = (1 + √SNR)² · x_mse, with
SNR = e^λ.
"""

import functools
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm_jax.diffusion.predictions import Prediction, target

Loss = Callable[[Prediction, Array, Array, Array], Array]


def _mean_square(error: Float[Array, "b ..."]) -> Float[Array, "b"]:
    return jnp.mean(jnp.square(error.astype(jnp.float32)), axis=tuple(range(1, error.ndim)))


def x_mse(
    prediction: Prediction,
    x: Float[Array, "b ..."],
    eps: Float[Array, "b ..."],
    logsnr: Float[Array, "b"],
) -> Float[Array, "b"]:
    """|x̂ − x|², weight 1 on x."""
    return _mean_square(prediction.x - x)


def eps_mse(
    prediction: Prediction,
    x: Float[Array, "b ..."],
    eps: Float[Array, "b ..."],
    logsnr: Float[Array, "b"],
) -> Float[Array, "b"]:
    """|ε̂ − ε|², weight SNR on x (Ho et al. 2020, eq. 14)."""
    return _mean_square(prediction.eps - eps)


def v_mse(
    prediction: Prediction,
    x: Float[Array, "b ..."],
    eps: Float[Array, "b ..."],
    logsnr: Float[Array, "b"],
) -> Float[Array, "b"]:
    """|v̂ − v|², weight 1 + SNR on x (Salimans & Ho 2022, "SNR+1"; also SVD's EDM weight)."""
    return _mean_square(prediction.v - target("v", x, eps, logsnr))


def velocity_mse(
    prediction: Prediction,
    x: Float[Array, "b ..."],
    eps: Float[Array, "b ..."],
    logsnr: Float[Array, "b"],
) -> Float[Array, "b"]:
    """|û − u|² of rectified flow's u = ε − x, weight (1 + √SNR)² on x (Liu et al. 2022, eq. 1)."""
    return _mean_square(prediction.velocity - target("velocity", x, eps, logsnr))


def truncated_snr(
    prediction: Prediction,
    x: Float[Array, "b ..."],
    eps: Float[Array, "b ..."],
    logsnr: Float[Array, "b"],
) -> Float[Array, "b"]:
    """max(|x̂ − x|², |ε̂ − ε|²), weight max(1, SNR) on x (Salimans & Ho 2022, §4)."""
    return jnp.maximum(
        x_mse(prediction, x, eps, logsnr),
        eps_mse(prediction, x, eps, logsnr),
    )


def min_snr_gamma(
    prediction: Prediction,
    x: Float[Array, "b ..."],
    eps: Float[Array, "b ..."],
    logsnr: Float[Array, "b"],
    *,
    gamma: float = 5.0,
) -> Float[Array, "b"]:
    """Weight min(SNR, γ) on x, that is min(|ε̂ − ε|², γ |x̂ − x|²) (Hang et al. 2023)."""
    return jnp.minimum(jnp.exp(logsnr), gamma) * x_mse(prediction, x, eps, logsnr)


def edm(
    prediction: Prediction,
    x: Float[Array, "b ..."],
    eps: Float[Array, "b ..."],
    logsnr: Float[Array, "b"],
    *,
    sigma_data: float = 0.5,
) -> Float[Array, "b"]:
    """EDM's weight (σ² + σ_data²)/(σ σ_data)² = SNR + 1/σ_data² on x (Karras et al. 2022)."""
    # SNR · x_mse is ε_mse: no large weight meets a small error.
    noise = eps_mse(prediction, x, eps, logsnr)
    return noise + x_mse(prediction, x, eps, logsnr) / sigma_data**2


LOSSES: Mapping[str, Loss] = {
    "v_mse": v_mse,
    "eps_mse": eps_mse,
    "x_mse": x_mse,
    "velocity_mse": velocity_mse,
    "truncated_snr": truncated_snr,
    "min_snr_gamma": min_snr_gamma,
    "edm": edm,
}


def make_loss(name: str, *, gamma: float = 5.0, sigma_data: float = 0.5) -> Loss:
    """The loss called `name` in `LOSSES`, with the parameter that it has, if any, bound.

    Raises:
      ValueError: unknown name.
    """
    if name not in LOSSES:
        raise ValueError(f"loss={name!r} is unknown; allowed: {', '.join(LOSSES)}")
    if name == "min_snr_gamma":
        return functools.partial(min_snr_gamma, gamma=gamma)
    if name == "edm":
        return functools.partial(edm, sigma_data=sigma_data)
    return LOSSES[name]


def low_discrepancy_times(key: Key[Array, ""], n: int) -> Float[Array, "{n}"]:
    """n times in [0, 1], one in each interval [i/n, (i+1)/n), each uniform by itself.

    One offset for all intervals (Kingma et al. 2021, Variational Diffusion Models). The order is
    random so that a part of the batch (a microbatch, a host's share) sees the whole range.
    """
    offset_key, order_key = jax.random.split(key)
    strata = jax.random.permutation(order_key, n).astype(jnp.float32)
    return (strata + jax.random.uniform(offset_key)) / n
