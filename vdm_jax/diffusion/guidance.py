"""Guidance: functions from Denoiser to Denoiser, composed by nesting.

`static_clip(classifier_free(denoiser, 2.0, null))` first guides, then clips; a sampler sees one
Denoiser. For one z, x̂ and ε̂ are affine in each other, so a combination with weights of sum one
may be taken in both at once: nothing is divided by α or σ, and λ may be ±20 or ±inf.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from vdm_jax.diffusion.predictions import Prediction
from vdm_jax.diffusion.process import Denoiser
from vdm_jax.diffusion.schedules import expand


def zero_null(cond: Any) -> Any:
    """The null condition of a network without a learned one: zeros for every array of `cond`."""
    return jax.tree.map(jnp.zeros_like, cond)


def classifier_free(
    denoiser: Denoiser,
    scale: float | int | Float[Array, ""] | Float[Array, "b"] | Float[Array, "#b f"],
    null: Callable[[Any], Any] = zero_null,
) -> Denoiser:
    """ε_null + g (ε_cond − ε_null), one evaluation on the doubled batch (Ho & Salimans 2021).

    Args:
      denoiser: the conditional denoiser.
      scale: g, a number, or one for each example or each frame. The paper's (1+w) ε_cond − w ε_null
        is g = 1 + w: 0 is unconditional, 1 conditional (the denoiser itself when given as a Python
        number: nothing is doubled), above 1 amplified.
      null: makes the null condition of the same structure and shapes from a condition, learned
        (`Stage.null`) or zero. Every array of both has the batch as its first axis.

    Returns:
      The guided denoiser. It raises ValueError where the null condition or its shapes do not fit.
    """
    if isinstance(scale, (int, float)) and scale == 1:
        return denoiser

    def guided(z: Float[Array, "b ..."], logsnr: Float[Array, "b"], cond: Any) -> Prediction:
        g = expand(jnp.asarray(scale, jnp.float32), z.ndim)

        def combine(conditional: Array, unconditional: Array) -> Array:
            return unconditional + g * (conditional - unconditional)

        return _joined(denoiser, z, logsnr, [cond, null(cond)], combine)

    return guided


def weighted(denoiser: Denoiser, terms: Sequence[tuple[float, Callable[[Any], Any]]]) -> Denoiser:
    """Σ w_i ε(c_i), one evaluation of all terms as one batch.

    Args:
      denoiser: the conditional denoiser.
      terms: (w_i, what makes c_i of the condition), w_i of sum 1. Terms of weight 0 are left out.

    Raises ValueError where the weights do not sum to 1.
    """
    if abs(sum(weight for weight, _ in terms) - 1.0) > 1e-6:
        raise ValueError(f"weights {[weight for weight, _ in terms]}: must sum to 1")
    kept = [(weight, change) for weight, change in terms if weight != 0]

    def guided(z: Float[Array, "b ..."], logsnr: Float[Array, "b"], cond: Any) -> Prediction:
        def combine(*parts: Array) -> Array:
            weighted = [weight * part for (weight, _), part in zip(kept, parts, strict=True)]
            return functools.reduce(operator.add, weighted)

        return _joined(denoiser, z, logsnr, [change(cond) for _, change in kept], combine)

    return guided


def _joined(
    denoiser: Denoiser,
    z: Float[Array, "b ..."],
    logsnr: Float[Array, "b"],
    conds: Sequence[Any],
    combine: Callable[..., Array],
) -> Prediction:
    """`combine` of the predictions for several conditions, evaluated as one batch."""
    batch, count = z.shape[0], len(conds)

    def join(*leaves: Array) -> Array:
        shapes = [leaf.shape for leaf in leaves]
        if len(set(shapes)) > 1 or shapes[0][:1] != (batch,):
            raise ValueError(
                f"guidance: conditions of shapes {', '.join(map(str, shapes))} must be equal and "
                f"begin with the batch size {batch}"
            )
        return jnp.concatenate(leaves)

    both = jax.tree.map(join, *(jax.tree.map(jnp.asarray, cond) for cond in conds))
    several = denoiser(jnp.concatenate([z] * count), jnp.concatenate([logsnr] * count), both)
    first = jax.tree.map(lambda field: field[:batch], several)
    x, eps = (combine(*jnp.split(field, count)) for field in (several.x, several.eps))
    return dataclasses.replace(first, x=x, eps=eps)


def frame_by_frame(denoiser: Denoiser, like: Sequence[str] = ()) -> Denoiser:
    """The Denoiser applied to each frame as a video of one frame, which makes an image model of a
    video model (Esser et al. 2023, Gen-1, section 3.4).

    like: names of the conditions that have a row a frame, as z has; the others hold for all frames.
    """

    def denoise(z: Float[Array, "b f ..."], logsnr: Float[Array, "b"], cond: Any) -> Prediction:
        frames = z.shape[1]

        def fold(array: Array) -> Array:
            return rearrange(array, "b f ... -> (b f) 1 ...")

        def repeated(array: ArrayLike) -> Array:
            return jnp.repeat(jnp.asarray(array), frames, axis=0)

        rows = {
            name: fold(value) if name in like else jax.tree.map(repeated, value)
            for name, value in cond.items()
        }
        found = denoiser(fold(z), repeated(logsnr), rows)
        x, eps = (
            rearrange(field, "(b f) 1 ... -> b f ...", f=frames) for field in (found.x, found.eps)
        )
        return Prediction(z=z, logsnr=logsnr, x=x, eps=eps)

    return denoise


def temporal(
    denoiser: Denoiser,
    scale: float | int,
    temporal_scale: float | int,
    null: Callable[[Any], Any] = zero_null,
    like: Sequence[str] = (),
) -> Denoiser:
    """Guidance with a scale of its own for consistency in time (Esser et al. 2023, Gen-1, section
    3.4):

    μ^π(∅) + ω_t (μ(∅) − μ^π(∅)) + ω (μ(c) − μ(∅)), with μ^π the Denoiser `frame_by_frame`.

    Args:
      denoiser: the conditional denoiser, of videos (b, f, ...).
      scale: ω. temporal_scale: ω_t; 1 = `classifier_free`; with more, frames are more alike.
      null: makes the null condition ∅, see `classifier_free`. What it keeps, such as a structure,
        all terms have.
      like: see `frame_by_frame`.
    """
    if temporal_scale == 1:
        return classifier_free(denoiser, scale, null)
    single = frame_by_frame(denoiser, like)

    def guided(z: Float[Array, "b f ..."], logsnr: Float[Array, "b"], cond: Any) -> Prediction:
        def combine(conditional: Array, unconditional: Array) -> Array:
            return scale * conditional + (temporal_scale - scale) * unconditional

        without = null(cond)
        frames = single(z, logsnr, without)
        clip = _joined(denoiser, z, logsnr, [cond, without], combine)
        x, eps = (
            part + (1 - temporal_scale) * alone
            for part, alone in ((clip.x, frames.x), (clip.eps, frames.eps))
        )
        return dataclasses.replace(clip, x=x, eps=eps)

    return guided


def distilled(
    denoiser: Denoiser, scale: float | int | Float[Array, ""] | Float[Array, "b"]
) -> Denoiser:
    """Tells a network that was distilled from a guided one the scale g, as `cond["guidance"]`.

    One evaluation, nothing is doubled (Meng et al. 2023). The scale is a number or one for each
    example; the condition is a mapping.
    """

    def told(z: Float[Array, "b ..."], logsnr: Float[Array, "b"], cond: Any) -> Prediction:
        scales = jnp.broadcast_to(jnp.asarray(scale, jnp.float32), logsnr.shape)
        return denoiser(z, logsnr, {**cond, "guidance": scales})

    return told


def oscillation(steps: int, scale: float, *, constant: int, low: float = 1.0) -> list[float]:
    """Guidance scales of a sampler's steps: `scale` for the first `constant` of them, then in turn
    `low` and `scale` (Imagen Video, Ho et al. 2022, §2.6)."""
    return [low if i >= constant and (i - constant) % 2 == 0 else scale for i in range(steps)]


def interval(steps: int, scale: float, *, start: float, end: float) -> list[float]:
    """Guidance scales of a sampler's steps: `scale` for those that begin in [start, end), shares of
    all steps, and 1 before and after (Kynkäänniemi et al. 2024, section 3)."""
    return [scale if start <= i / steps < end else 1.0 for i in range(steps)]


def scheduled(
    guided: Callable[[Float[Array, "b"]], Denoiser],
    scales: Sequence[float],
    logsnrs: Float[Array, "steps_plus_1"],
    unguided: Denoiser | None = None,
) -> Denoiser:
    """Guidance whose scale depends on the step.

    Args:
      guided: the Denoiser of a scale for each example, such as `classifier_free` makes.
      scales: one a step.
      logsnrs: the grid that is stepped through, of as many steps. Between its points the scale is
        that of the nearest.
      unguided: the Denoiser of scale 1, which is evaluated in the place of `guided` at steps of
        that scale; None = `guided` at all steps.
    """
    if len(scales) != len(logsnrs) - 1:
        raise ValueError(f"{len(scales)} scales: the grid has {len(logsnrs) - 1} steps")

    def denoise(z: Float[Array, "b ..."], logsnr: Float[Array, "b"], cond: Any) -> Prediction:
        step = jnp.argmin(jnp.abs(logsnrs[:-1, None] - logsnr[None]), axis=0)
        scale = jnp.asarray(scales, jnp.float32)[step]
        if unguided is None:
            return guided(scale)(z, logsnr, cond)
        inputs = (z, logsnr, cond)
        return jax.lax.cond(jnp.all(scale == 1.0), unguided, guided(scale), *inputs)

    return denoise


def static_clip(denoiser: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """Clips x̂ to [low, high], the range of the data, and recomputes ε̂ (Ho et al. 2020)."""
    if not low < high:
        raise ValueError(f"static_clip: low={low} must be below high={high}")

    def clipped(z: Float[Array, "b ..."], logsnr: Float[Array, "b"], cond: Any) -> Prediction:
        prediction = denoiser(z, logsnr, cond)
        return prediction.with_x(jnp.clip(prediction.x, low, high))

    return clipped


def dynamic_threshold(
    denoiser: Denoiser, percentile: float = 0.995, minimum: float = 1.0
) -> Denoiser:
    """Clips x̂ to [−s, s] and divides it by s/minimum (Saharia et al. 2022, Imagen, §2.3).

    s is the given quantile of an example's |x̂| over all its frames, and at least `minimum`, the
    bound of the data.
    """
    if not 0.0 < percentile <= 1.0:
        raise ValueError(f"dynamic_threshold: percentile={percentile} must be in (0, 1]")
    if minimum <= 0.0:
        raise ValueError(f"dynamic_threshold: minimum={minimum} must be positive")

    def thresholded(z: Float[Array, "b ..."], logsnr: Float[Array, "b"], cond: Any) -> Prediction:
        prediction = denoiser(z, logsnr, cond)
        x = prediction.x
        s = jnp.quantile(jnp.abs(x).reshape(x.shape[0], -1), percentile, axis=1)
        s = expand(jnp.maximum(s, minimum), x.ndim)
        return prediction.with_x(jnp.clip(x, -s, s) * (minimum / s))

    return thresholded
