"""Sampling what is not known of a video from what is: x given y = A x.

One joint model of whole videos serves every A (`measurements.py`): known frames, known pixels, a
low resolution. Two kinds of parts do it: guidance, from Denoiser to Denoiser, and `Replacement`, a
rule around a rule. A `Method` puts them together.

Aᵀ(y − A x̂) and A⁺ y are taken of x̂ as the wrapped denoiser gives it, and gradients go through
that denoiser. So clip outside: `static_clip(reconstruction_guidance(classifier_free(…)))`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm_jax.diffusion.measurements import Downsample, Mask, MaskedMeans, Measurement
from vdm_jax.diffusion.predictions import Prediction
from vdm_jax.diffusion.process import Denoiser
from vdm_jax.diffusion.samplers import Distilled
from vdm_jax.diffusion.schedules import alpha_sigma, expand
from vdm_jax.diffusion.solvers import Denoise, Rule

Weight = float | int | Float[Array, ""]


def _check_shape(measurement: Measurement, y: Array, x: Array) -> None:
    expected = jax.eval_shape(measurement.measure, x).shape
    if y.shape != expected:
        raise ValueError(f"y has shape {y.shape}; the measurement of {x.shape} has {expected}")


def _check_weight(weight: Weight | Float[Array, "..."]) -> None:
    if isinstance(weight, (int, float)) and not weight >= 0:
        raise ValueError(f"weight={weight} must not be negative")


def _mask_of(measurement: Measurement) -> Mask | None:
    """The elements that are known themselves, if there are such."""
    if isinstance(measurement, MaskedMeans):
        return measurement.mask
    return measurement if isinstance(measurement, Mask) else None


def _differentiated(
    denoiser: Denoiser, z: Array, logsnr: Array, cond: Any
) -> tuple[Prediction, Callable[[Array], Array]]:
    """The prediction, evaluated once, and u -> (∂x̂/∂z)ᵀ u."""

    def of(z: Array) -> tuple[Array, Prediction]:
        prediction = denoiser(z, logsnr, cond)
        return prediction.x, prediction

    _, pull, prediction = jax.vjp(of, z, has_aux=True)
    return prediction, lambda cotangent: pull(cotangent)[0]


def reconstruction_guidance(
    denoiser: Denoiser,
    measurement: Measurement,
    y: Float[Array, "b ..."],
    weight: Weight | Float[Array, "..."],
) -> Denoiser:
    """x̃ = x̂ − (w_r α/2) ∇_z ‖y − A x̂(z)‖² (VDM, Ho et al. 2022, §3.1, eq. 7).

    That is E[x | z, y] = x̂ + (σ²/α) ∇_z log p(y | z) with p(y | z) ≈ N(A x̂, σ²/(w_r α²) I).
    The norm is a sum over an example. Of a `Mask`, and of the known elements of `MaskedMeans`, z^a
    is drawn from x^a by `Replacement`, only z^b is guided, and x̃^a = x^a. Of another measurement
    all of z is guided, and nothing replaced.

    Args:
      denoiser: evaluated once and differentiated once.
      measurement: A.
      y: what is known, float32, `measurement.measure` of some x.
      weight: w_r ≥ 0. 1 is right for noise so low that x is known to within σ/α; before that A x̂
        is closer to y than σ/α and more is better (docs/conditional.md). For A Aᵀ = I/n, means of
        n elements, n times as much. An array that broadcasts to y weights its elements.

    Returns:
      The guided denoiser. It raises ValueError if y does not have A x's shape.
    """
    _check_weight(weight)

    def guided(z: Float[Array, "b ..."], logsnr: Float[Array, "b"], cond: Any) -> Prediction:
        _check_shape(measurement, y, z)
        prediction, pull = _differentiated(denoiser, z, logsnr, cond)
        measured, transpose = jax.vjp(measurement.measure, prediction.x)
        alpha = expand(alpha_sigma(logsnr)[0], z.ndim)
        x = prediction.x + alpha * pull(transpose(weight * (y - measured))[0])
        if (mask := _mask_of(measurement)) is not None:
            x = jnp.where(jnp.asarray(mask.known), y, x)
        return prediction.with_x(x)

    return guided


def pseudo_inverse_guidance(
    denoiser: Denoiser,
    measurement: Measurement,
    y: Float[Array, "b ..."],
    weight: Weight = 1.0,
    sigma_data: float = 1.0,
) -> Denoiser:
    """ΠGDM (Song et al. 2023, Pseudoinverse-guided diffusion models, §3.1) without noise in y.

    p(x | z) ≈ N(x̂, r² I) makes p(y | z) ≈ N(A x̂, r² A Aᵀ), and since Aᵀ (A Aᵀ)⁻¹ = A⁺,

        E[x | z, y] = x̂ + (σ²/α) ∇_z log p(y | z) = x̂ + σ²/(α r²) (∂x̂/∂z)ᵀ A⁺ (y − A x̂),

    with the derivative of A x̂ in p(y | z) and r held fixed, as the paper does. For white data of
    deviation s, r² = s²σ²/(s²α² + σ²), so the factor is α + σ²/(s² α), and ∂x̂/∂z = α r²/σ² I: then
    the formula is exact, x̃ = x̂ + A⁺(y − A x̂). At λ → +∞ the factor is 1. At λ → −∞ it grows like
    1/α and ∂x̂/∂z = (α/σ²) Cov[x | z] vanishes like α; the product stays, but so does an error of
    the network's derivative, times 1/α, which `static_clip` outside bounds. At −∞ itself the
    covariance is taken to be white.

    Args:
      denoiser, measurement, y: as for `reconstruction_guidance`.
      weight: ≥ 0, times the correction; 1 is the derivation's.
      sigma_data: s, the deviation of an element of x; 1 is the paper's.

    Returns:
      The guided denoiser. It raises ValueError if y does not have A x's shape.
    """
    _check_weight(weight)
    if not sigma_data > 0.0:
        raise ValueError(f"sigma_data={sigma_data} must be positive")

    def guided(z: Float[Array, "b ..."], logsnr: Float[Array, "b"], cond: Any) -> Prediction:
        _check_shape(measurement, y, z)
        prediction, pull = _differentiated(denoiser, z, logsnr, cond)
        residual = measurement.lift(y - measurement.measure(prediction.x))
        alpha, sigma = (expand(c, z.ndim) for c in alpha_sigma(logsnr))
        factor = alpha + sigma**2 / (sigma_data**2 * jnp.where(alpha > 0.0, alpha, 1.0))
        correction = jnp.where(alpha > 0.0, factor * pull(residual), residual)
        return prediction.with_x(prediction.x + weight * correction)

    return guided


def projection(denoiser: Denoiser, measurement: Measurement, y: Float[Array, "b ..."]) -> Denoiser:
    """x̃ = A⁺ y + (I − A⁺A) x̂ (DDNM, Wang et al. 2022, eq. 10): the nearest x that y fits.

    No derivative is taken. The denoiser raises ValueError if y does not have A x's shape.
    """

    def projected(z: Float[Array, "b ..."], logsnr: Float[Array, "b"], cond: Any) -> Prediction:
        _check_shape(measurement, y, z)
        prediction = denoiser(z, logsnr, cond)
        x = prediction.x
        # x − A⁺A x first: of a mask that is exactly 0 where y is known.
        return prediction.with_x(x - measurement.lift(measurement.measure(x)) + measurement.lift(y))

    return projected


@dataclasses.dataclass(frozen=True, kw_only=True)
class Replacement:
    """What A sees of z is drawn anew after each step of another rule, from the forward process.

    z_s ← (I − A⁺A) z_s + A⁺(α_s y + σ_s A ξ). Of a mask this is the replacement method, z^a_s drawn
    from q(z^a_s | x^a) (Song et al. 2021, score SDE, appendix I.2; VDM, Ho et al. 2022, §3.1), else
    ILVR (Choi et al. 2021). At λ_s = +inf A z_s is y, of a mask exactly. The first z is the
    caller's. Equal λ leave z as it is.

    Attributes:
      rule: the rule that makes the step. `Distilled` does not go on from the z that it returned, so
        there is nothing to replace.
      measurement: A.
      y: what is known.
    """

    rule: Rule
    measurement: Measurement
    y: Any

    def __post_init__(self):
        if isinstance(self.rule, Distilled):
            raise ValueError("Replacement: the sampler 'distilled' takes no replacement")

    def init(self, z: Float[Array, "b ..."]) -> Any:
        _check_shape(self.measurement, self.y, z)
        return self.rule.init(z)

    def step(
        self,
        key: Key[Array, ""],
        denoise: Denoise,
        z: Float[Array, "b ..."],
        state: Any,
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> tuple[Float[Array, "b ..."], Any]:
        rule_key, own_key = jax.random.split(key)
        z, state = self.rule.step(rule_key, denoise, z, state, logsnr_t, logsnr_s)
        alpha_s, sigma_s = alpha_sigma(logsnr_s)
        noise = jax.random.normal(own_key, z.shape, jnp.float32)
        change = self.measurement.lift(self.measurement.measure(sigma_s * noise - z))
        replaced = z + change + alpha_s * self.measurement.lift(self.y)
        return jnp.where(logsnr_t == logsnr_s, z, replaced), state


def masked(denoiser: Denoiser, measurement: Measurement, y: Float[Array, "b ..."]) -> Denoiser:
    """The Denoiser of a network that was trained with masked videos, given this mask and video.

    Needs no gradient and no replacement (Lumiere, Bar-Tal et al. 2024, §4.2). Raises ValueError for
    what is not a `Mask` of whole pixels.
    """
    if not isinstance(measurement, Mask) or jnp.shape(measurement.known)[-1:] != (1,):
        raise ValueError("method = 'trained' is for masks of whole pixels or frames")

    def denoise(z: Float[Array, "b f h w c"], logsnr: Float[Array, "b"], cond: Any) -> Prediction:
        mask = jnp.broadcast_to(jnp.asarray(measurement.known), (*z.shape[:-1], 1))
        known = {"masked_video": y, "mask": mask.astype(jnp.float32)}
        return denoiser(z, logsnr, {**cond, **known})

    return denoise


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByReconstruction:
    """`reconstruction_guidance`, and for a mask `Replacement` too (VDM, Ho et al. 2022, §3.1).

    Attributes:
      weight: w_r; None = `default_weight`, which is sound for Gaussian videos
        (docs/conditional.md). Of `MaskedMeans` it is that of the known elements, and the means have
        1.25/4 of it: both defaults, as A repeats each mean over its block.
    """

    weight: Weight | None = None

    def __post_init__(self):
        if self.weight is not None:
            _check_weight(self.weight)

    def default_weight(self, measurement: Measurement) -> float:
        """4; for means over n elements 1.25 n, because A Aᵀ = I/n."""
        return 1.25 * measurement.block_size if isinstance(measurement, Downsample) else 4.0

    def __call__(
        self, denoiser: Denoiser, rule: Rule, measurement: Measurement, y: Float[Array, "b ..."]
    ) -> tuple[Denoiser, Rule]:
        weight = self.default_weight(measurement) if self.weight is None else self.weight
        mask = _mask_of(measurement)
        if isinstance(measurement, MaskedMeans):
            weight = weight * jnp.where(jnp.asarray(measurement.known), 1.0, 1.25 / 4)
        guided = reconstruction_guidance(denoiser, measurement, y, weight)
        if mask is not None:
            rule = Replacement(rule=rule, measurement=mask, y=y)
        return guided, rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByReplacement:
    """`Replacement` alone."""

    def __call__(
        self, denoiser: Denoiser, rule: Rule, measurement: Measurement, y: Float[Array, "b ..."]
    ) -> tuple[Denoiser, Rule]:
        return denoiser, Replacement(rule=rule, measurement=measurement, y=y)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByPseudoInverse:
    """`pseudo_inverse_guidance` (ΠGDM).

    Attributes:
      weight: times the correction; 1 is the derivation's.
      sigma_data: the standard deviation of an element of x.
    """

    weight: Weight = 1.0
    sigma_data: float = 1.0

    def __post_init__(self):
        _check_weight(self.weight)

    def __call__(
        self, denoiser: Denoiser, rule: Rule, measurement: Measurement, y: Float[Array, "b ..."]
    ) -> tuple[Denoiser, Rule]:
        guided = pseudo_inverse_guidance(denoiser, measurement, y, self.weight, self.sigma_data)
        return guided, rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByProjection:
    """`projection` (DDNM)."""

    def __call__(
        self, denoiser: Denoiser, rule: Rule, measurement: Measurement, y: Float[Array, "b ..."]
    ) -> tuple[Denoiser, Rule]:
        return projection(denoiser, measurement, y), rule


@dataclasses.dataclass(frozen=True, kw_only=True)
class ByTraining:
    """`masked`: for a network that was trained with masked videos, without any guidance."""

    def __call__(
        self, denoiser: Denoiser, rule: Rule, measurement: Measurement, y: Float[Array, "b ..."]
    ) -> tuple[Denoiser, Rule]:
        return masked(denoiser, measurement, y), rule


Method = Callable[[Denoiser, Rule, Measurement, Array], tuple[Denoiser, Rule]]
"""(denoiser, rule, A, y) -> the denoiser and the rule that sample x given y = A x.

The denoiser is unconditional in y; classifier-free guidance goes inside, clipping outside. A and y
may be traced.
"""

METHODS: Mapping[str, type] = {
    "reconstruction": ByReconstruction,
    "replacement": ByReplacement,
    "pigdm": ByPseudoInverse,
    "projection": ByProjection,
    "trained": ByTraining,
}


def make_method(name: str, **fields: Any) -> Method:
    """The method called `name` in `METHODS`, with its fields from `fields`.

    Raises ValueError: unknown name, a field that the method does not have or a value that is not
    allowed.
    """
    if name not in METHODS:
        raise ValueError(f"method={name!r} is unknown; allowed: {', '.join(METHODS)}")
    allowed = [field.name for field in dataclasses.fields(METHODS[name])]
    for field in fields:
        if field not in allowed:
            raise ValueError(f"{field}={fields[field]} has no effect with method={name!r}")
    return METHODS[name](**fields)
