"""Preconditioning by a linear estimate: the network predicts how x differs from the best linear
estimate of x from z and a second noisy observation (after Karras et al. 2022, section 5)."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.diffusion.schedules import alpha_sigma, expand


def about_estimate(
    output: Float[Array, "b f h w c"],
    z: Float[Array, "b f h w c"],
    logsnr: Float[Array, "b"],
    observed: Float[Array, "b f h w c"],
    observed_logsnr: Float[Array, "b"],
    deviation: Float[Array, "b #f #h #w 1"],
) -> Float[Array, "b f h w c"]:
    """v of the video that differs from its best linear estimate by `output` standard deviations.

    The observations are z = α x + σ ε and `observed` = a y + b ε', with x of variance 1 and x − y
    of standard deviation `deviation`, independent of all else. `observed` divided by a estimates x
    up to the variance s² = deviation² + b² (at most 1), so

        v̂ = σ (α (1 − s²) z − a · observed) / (α² s² + σ²) + s / √(α² s² + σ²) · output.

    An output of 0 is `observed` itself where that has no noise and z is pure noise. Where the
    observation is worth nothing (deviation 1, or pure noise) the output is v.
    """
    variance, gain = estimate_gain(logsnr, observed_logsnr, deviation)
    alpha, sigma = (expand(c, z.ndim) for c in alpha_sigma(logsnr))
    a, _ = (expand(c, z.ndim) for c in alpha_sigma(observed_logsnr))
    estimate = sigma * (alpha * (1 - variance) * z - a * observed)
    return estimate / (alpha**2 * variance + sigma**2) + gain * output


def estimate_gain(
    logsnr: Float[Array, "b"],
    observed_logsnr: Float[Array, "b"],
    deviation: Float[Array, "b #f #h #w 1"],
) -> tuple[Float[Array, "b #f #h #w 1"], Float[Array, "b #f #h #w 1"]]:
    """s² of `about_estimate`, and the factor of the output."""
    alpha, sigma = (expand(c, deviation.ndim) for c in alpha_sigma(logsnr))
    _, b = (expand(c, deviation.ndim) for c in alpha_sigma(observed_logsnr))
    variance = jnp.minimum(deviation**2 + b**2, 1.0)
    return variance, jnp.sqrt(variance / (alpha**2 * variance + sigma**2))
