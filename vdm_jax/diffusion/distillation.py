"""Targets for distilling a sampler into fewer steps: what a student's x̂ should be at z_t.

All of them are a clean x: guidance distillation (Meng et al. 2023) has the guided teacher's x̂
itself, and the others are below. One loss serves those that imitate a teacher's steps
(`distillation_loss`); distribution matching moves the student's own samples. The teacher is a
Denoiser, guided and clipped as its sampler has it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.diffusion.losses import Loss
from vdm_jax.diffusion.predictions import Prediction
from vdm_jax.diffusion.process import Denoiser
from vdm_jax.diffusion.schedules import alpha_sigma, expand


def _ddim(prediction: Prediction, logsnr_s: Float[Array, "b"]) -> Float[Array, "b ..."]:
    """DDIM's deterministic step, each example to a λ of its own."""
    alpha, sigma = (expand(c, prediction.z.ndim) for c in alpha_sigma(logsnr_s))
    return alpha * prediction.x + sigma * prediction.eps


def two_step_target(
    teacher: Denoiser,
    z: Float[Array, "b ..."],
    logsnr_t: Float[Array, "b"],
    logsnr_mid: Float[Array, "b"],
    logsnr_s: Float[Array, "b"],
    cond,
) -> Float[Array, "b ..."]:
    """The x̂ whose one DDIM step t → s ends where the teacher's two, t → mid → s, do.

    Salimans & Ho 2022, algorithm 2 and appendix G: x̃ = (z_s − (σ_s/σ_t) z_t)/(α_s − (σ_s/σ_t) α_t).
    A DDIM step is z_s = (σ_s/σ_t) z_t + α_s (1 − r_ts) x̂ with r_ts = e^{(λ_t − λ_s)/2}, so z_t
    cancels and x̃ is a mean of the teacher's two x̂,

        x̃ = [r_ms (1 − r_tm) x̂(z_t) + (1 − r_ms) x̂(z_mid)] / (1 − r_ts),

    without a difference of large numbers, and also where λ_s = +inf: there x̃ = x̂(z_mid).
    λ_t < λ_mid < λ_s; λ_mid is finite.
    """
    first = teacher(z, logsnr_t, cond)
    second = teacher(_ddim(first, logsnr_mid), logsnr_mid, cond)
    step_mid, step_s = 0.5 * (logsnr_t - logsnr_mid), 0.5 * (logsnr_mid - logsnr_s)
    whole = -jnp.expm1(step_mid + step_s)
    weight = -jnp.exp(step_s) * jnp.expm1(step_mid) / whole
    other = -jnp.expm1(step_s) / whole
    return expand(weight, z.ndim) * first.x + expand(other, z.ndim) * second.x


def consistency_target(
    teacher: Denoiser,
    student: Denoiser,
    z: Float[Array, "b ..."],
    logsnr_t: Float[Array, "b"],
    logsnr_s: Float[Array, "b"],
    cond,
) -> Float[Array, "b ..."]:
    """The student's x̂ one teacher's DDIM step nearer to the data (Song et al. 2023, algorithm 2).

    No gradient goes through it; the student's own parameters serve as its target network (Song &
    Dhariwal 2024, §3.2, found the moving average to be in the way). At λ_s = +inf the student's x̂
    is z itself, the boundary condition, which is the teacher's x̂.
    """
    z_s = _ddim(teacher(z, logsnr_t, cond), logsnr_s)
    # The network has no embedding of +inf.
    student_x = student(z_s, jnp.where(jnp.isposinf(logsnr_s), logsnr_t, logsnr_s), cond).x
    clean = jnp.isposinf(expand(logsnr_s, z.ndim))
    return jax.lax.stop_gradient(jnp.where(clean, z_s, student_x))


def distribution_target(
    made: Float[Array, "b ..."], real: Float[Array, "b ..."], fake: Float[Array, "b ..."]
) -> Float[Array, "b ..."]:
    """Where distribution matching moves what a student made (Yin et al. 2024, DMD2, equation 3;
    weights: Yin et al. 2024, DMD, equation 8).

    The gradient of KL(student's samples, data) at a noise level is the difference of the scores of
    the two, so of the two x̂ of one z: x̃ = x + (x̂_real − x̂_fake) / mean|x − x̂_real|, the mean over
    each example. The gradient of ½|x − x̃|² by x is then that of KL, weighted. None goes through x̃.

    Args:
      made: the student's samples x.
      real: x̂ of the teacher from noised x.
      fake: from the same z, x̂ of a network that is trained on the student's samples.
    """
    axes = tuple(range(1, made.ndim))
    size = jnp.mean(jnp.abs(made - real), axis=axes, keepdims=True)
    return jax.lax.stop_gradient(made + (real - fake) / jnp.maximum(size, 1e-6))


def distillation_loss(
    loss: Loss, prediction: Prediction, x_target: Float[Array, "b ..."]
) -> Float[Array, "b"]:
    """`loss` with the target x̃ in place of the data, and the noise that z then holds.

    truncated_snr: max(|x̂ − x̃|², |ε̂ − ε̃|²); v_mse: |v̂ − ṽ|² (Salimans & Ho 2022, §4). No gradient
    goes to the target.
    """
    target = prediction.with_x(jax.lax.stop_gradient(x_target))
    return loss(prediction, target.x, target.eps, prediction.logsnr)
