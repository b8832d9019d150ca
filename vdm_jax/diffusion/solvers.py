"""Step rules of higher order: DPM-Solver++, EDM's and rectified flow's.

All of them are one first-order step, DDIM's z = α_s x̂ + σ_s ε̂, plus a multiple of how much the
prediction changes. DDIM is what Euler's method gives in EDM's σ with y = z/α, in rectified flow's
t with z/(α + σ), and what DPM-Solver++ of first order is. So nothing is divided by α or σ, and λ
may be infinite wherever a step is defined there. No rule evaluates the denoiser at λ_s = +inf.

DPM-Solver++'s λ is half of this code base's: its h is (λ_s − λ_t)/2, its r the last h over this.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm_jax.diffusion.predictions import Prediction
from vdm_jax.diffusion.schedules import alpha_sigma, flow_time, sigma_from_logsnr

Denoise = Callable[[Array, Array], Prediction]


@runtime_checkable
class Rule(Protocol):
    """One step of a sampler.

    `state` is a pytree of arrays of fixed shapes, () if there is none: multistep rules keep their
    earlier predictions in it. A rule may call `denoise` as often as it likes.
    """

    def init(self, z: Float[Array, "b ..."]) -> Any:
        """The state before the first step."""

    def step(
        self,
        key: Key[Array, ""],
        denoise: Denoise,
        z: Float[Array, "b ..."],
        state: Any,
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> tuple[Float[Array, "b ..."], Any]:
        """z and state at `logsnr_s`, given them at `logsnr_t`.

        `denoise(z, logsnr)` takes a scalar λ. Equal λ must leave z as it is.
        """


class Stateless:
    """A rule that remembers nothing from step to step."""

    def init(self, z: Float[Array, "b ..."]) -> tuple[()]:
        return ()


def _difference(logsnr_t: Float[Array, ""], logsnr_s: Float[Array, ""]) -> Float[Array, ""]:
    """λ_s − λ_t, and 0 where the two are equal, infinite or not."""
    return jnp.where(logsnr_t == logsnr_s, 0.0, logsnr_s - logsnr_t)


def innovation(logsnr_t: Float[Array, ""], logsnr_s: Float[Array, ""]) -> Float[Array, ""]:
    """c = 1 − e^{λ_t − λ_s} = 1 − (α_t σ_s / (α_s σ_t))², and 0 where the two are equal."""
    return -jnp.expm1(-_difference(logsnr_t, logsnr_s))


def ddim_step(prediction: Prediction, logsnr_s: Float[Array, ""]) -> Float[Array, "b ..."]:
    """α_s x̂ + σ_s ε̂: the deterministic step of first order (Song et al. 2021, eq. 12, η = 0)."""
    alpha_s, sigma_s = alpha_sigma(logsnr_s)
    return alpha_s * prediction.x + sigma_s * prediction.eps


def _gaussian(key: Key[Array, ""], z: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    return jax.random.normal(key, z.shape, jnp.float32)


def _if(predicate: Array, then: Callable[[Array], Array], z: Array) -> Array:
    """then(z) where `predicate`, else z: only the branch that is wanted is computed."""
    return jax.lax.cond(predicate, then, lambda z: z, z)


# --------------------------------------------------------------------------- DPM-Solver++


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Multistep:
    """Two-step rules: x̂ at λ_t and at the λ before it, extrapolated linearly over the step.

    The state is the earlier x̂ and h, which is 0 before the first step.
    """

    def init(self, z: Float[Array, "b ..."]) -> dict[str, Array]:
        return {"x": jnp.zeros_like(z), "h": jnp.zeros((), z.dtype)}

    def _advance(self, prediction, state, logsnr_t, logsnr_s):
        """(D − x̂, the new state), D = (1 + 1/2r) x̂ − x̂_before/2r of the papers' algorithms."""
        h, before = 0.5 * _difference(logsnr_t, logsnr_s), state["h"]
        # First order in the first step, in the last to +inf, and after a step from −inf, where the
        # quotient is 0 of itself. A step of no length is none: it leaves the state alone.
        second = (before > 0) & jnp.isfinite(h)
        slope = 0.5 * jnp.where(second, h / jnp.where(second, before, 1.0), 0.0)
        changed = slope * (prediction.x - state["x"])
        kept = h == 0.0
        state = {
            "x": jnp.where(kept, state["x"], prediction.x),
            "h": jnp.where(kept, before, h),
        }
        return changed, state


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMPP2M(_Multistep):
    """DPM-Solver++(2M) (Lu et al. 2022, arXiv 2211.01095, algorithm 2): deterministic, order two.

    z_s = (σ_s/σ_t) z − α_s (e^{−h} − 1) D, one evaluation a step. With D = x̂ it is DDIM, which is
    what the first step and the last one to λ = +inf are.
    """

    def step(
        self,
        key: Key[Array, ""],
        denoise: Denoise,
        z: Float[Array, "b ..."],
        state: Any,
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> tuple[Float[Array, "b ..."], Any]:
        prediction = denoise(z, logsnr_t)
        changed, state = self._advance(prediction, state, logsnr_t, logsnr_s)
        gain = -jnp.expm1(-0.5 * _difference(logsnr_t, logsnr_s)) * alpha_sigma(logsnr_s)[0]
        return ddim_step(prediction, logsnr_s) + gain * changed, state


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMPP2MSDE(_Multistep):
    """SDE-DPM-Solver++(2M) of the same paper: DPM-Solver++ for the reverse SDE.

    z_s = (σ_s/σ_t) e^{−h} z + α_s (1 − e^{−2h}) D + σ_s √(1 − e^{−2h}) ξ, one evaluation a step.
    With D = x̂ it is ancestral sampling with the lower variance.
    """

    def step(
        self,
        key: Key[Array, ""],
        denoise: Denoise,
        z: Float[Array, "b ..."],
        state: Any,
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> tuple[Float[Array, "b ..."], Any]:
        prediction = denoise(z, logsnr_t)
        changed, state = self._advance(prediction, state, logsnr_t, logsnr_s)
        alpha_s, sigma_s = alpha_sigma(logsnr_s)
        c = innovation(logsnr_t, logsnr_s)
        mean = alpha_s * (prediction.x + c * changed)
        mean += sigma_s * jnp.sqrt(1.0 - c) * prediction.eps
        return mean + sigma_s * jnp.sqrt(c) * _gaussian(key, z), state


@dataclasses.dataclass(frozen=True, kw_only=True)
class DPMPP2S(Stateless):
    """DPM-Solver++(2S) (Lu et al. 2022, arXiv 2211.01095, algorithm 1, r = 1/2): singlestep.

    DDIM to the middle in λ, then z_s = (σ_s/σ_t) z − α_s (e^{−h} − 1) x̂_middle: deterministic, of
    order two, two evaluations a step. From λ = −inf or to +inf there is no middle: DDIM.
    """

    def step(
        self,
        key: Key[Array, ""],
        denoise: Denoise,
        z: Float[Array, "b ..."],
        state: tuple[()],
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> tuple[Float[Array, "b ..."], tuple[()]]:
        prediction = denoise(z, logsnr_t)
        difference = _difference(logsnr_t, logsnr_s)
        second = (difference > 0.0) & jnp.isfinite(difference)
        middle = jnp.where(second, logsnr_t + 0.5 * difference, logsnr_t)
        gain = -jnp.expm1(-0.5 * difference) * alpha_sigma(logsnr_s)[0]

        def corrected(z_s: Array) -> Array:
            x = denoise(ddim_step(prediction, middle), middle).x
            return z_s + gain * (x - prediction.x)

        return _if(second, corrected, ddim_step(prediction, logsnr_s)), state


# ------------------------------------------------------------------------------------ EDM


@dataclasses.dataclass(frozen=True, kw_only=True)
class Euler(Stateless):
    """Euler's method in EDM's σ, with its churn (Karras et al. 2022, algorithm 2, lines 4 to 8).

    In y = z/α and σ = e^{−λ/2}: σ̂ = (1 + γ) σ_t, ŷ = y + √(σ̂² − σ_t²) S_noise ξ, then
    y_s = ŷ + (σ_s − σ̂) ε̂, with γ = min(S_churn/steps, √2 − 1) where S_tmin ≤ σ_t ≤ S_tmax. Order
    one and one evaluation a step; without churn it is DDIM.

    Attributes:
      churn: S_churn, 0 = deterministic.
      churn_min, churn_max: S_tmin and S_tmax, in EDM's σ.
      churn_noise: S_noise.
      steps: the number of steps over which the churn is spread.
    """

    churn: float = 0.0
    churn_min: float = 0.0
    churn_max: float = math.inf
    churn_noise: float = 1.0
    steps: int = 1

    def __post_init__(self):
        name = type(self).__name__
        if not 0.0 <= self.churn < math.inf:
            raise ValueError(f"{name}: churn={self.churn} must be at least 0 and finite")
        if not 0.0 <= self.churn_min <= self.churn_max:
            raise ValueError(
                f"{name}: churn_min={self.churn_min}, churn_max={self.churn_max} must satisfy "
                "0 <= churn_min <= churn_max"
            )
        if not 0.0 <= self.churn_noise < math.inf:
            raise ValueError(f"{name}: churn_noise={self.churn_noise} must be at least 0")
        if self.steps < 1:
            raise ValueError(f"{name}: steps={self.steps} must be at least 1")

    def _churned(self, key, z, logsnr_t, logsnr_s):
        """ẑ = α̂ ŷ and its λ̂ = λ_t − 2 log(1 + γ); in z the noise is √(1 − e^{λ̂ − λ_t}) σ̂."""
        if self.churn == 0.0:
            return z, logsnr_t
        sigma = sigma_from_logsnr(logsnr_t)
        applies = (sigma >= self.churn_min) & (sigma <= self.churn_max)
        # More noise than pure noise there is not, and a step of no length must change nothing.
        applies &= jnp.isfinite(logsnr_t) & (logsnr_t != logsnr_s)
        gamma = min(self.churn / self.steps, math.sqrt(2.0) - 1.0)
        raised = jnp.where(applies, logsnr_t - 2.0 * math.log1p(gamma), logsnr_t)
        (alpha_t, _), (alpha, sigma) = alpha_sigma(logsnr_t), alpha_sigma(raised)
        ratio = jnp.where(applies, alpha / jnp.where(applies, alpha_t, 1.0), 1.0)
        deviation = self.churn_noise * sigma * jnp.sqrt(innovation(raised, logsnr_t))
        return ratio * z + deviation * _gaussian(key, z), raised

    def step(
        self,
        key: Key[Array, ""],
        denoise: Denoise,
        z: Float[Array, "b ..."],
        state: tuple[()],
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> tuple[Float[Array, "b ..."], tuple[()]]:
        z, logsnr_t = self._churned(key, z, logsnr_t, logsnr_s)
        return ddim_step(denoise(z, logsnr_t), logsnr_s), state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Heun(Euler):
    """Heun's method in EDM's σ (Karras et al. 2022, algorithm 1; with churn algorithm 2).

    After Euler's step y_s = ŷ + (σ_s − σ̂)(ε̂ + ε̂_s)/2: order two, two evaluations a step but for
    the last one to σ = 0, which is Euler's. So is one from λ = −inf, where σ is infinite: the
    method wants a grid that begins at a finite σ (80 in the paper), best "karras".
    """

    def step(
        self,
        key: Key[Array, ""],
        denoise: Denoise,
        z: Float[Array, "b ..."],
        state: tuple[()],
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> tuple[Float[Array, "b ..."], tuple[()]]:
        z, logsnr_t = self._churned(key, z, logsnr_t, logsnr_s)
        prediction = denoise(z, logsnr_t)
        difference = _difference(logsnr_t, logsnr_s)
        second = (difference > 0.0) & jnp.isfinite(difference)
        # α_s (σ̂ − σ_s) in EDM's σ = σ_s of z times e^{(λ_s − λ̂)/2} − 1.
        gain = alpha_sigma(logsnr_s)[1] * jnp.expm1(0.5 * jnp.where(second, difference, 0.0))

        def corrected(z_s: Array) -> Array:
            return z_s - 0.5 * gain * (denoise(z_s, logsnr_s).eps - prediction.eps)

        return _if(second, corrected, ddim_step(prediction, logsnr_s)), state


# ------------------------------------------------------------------------- rectified flow


def _flow_distance(logsnr_t: Float[Array, ""], logsnr_s: Float[Array, ""]) -> Float[Array, ""]:
    """(α_s + σ_s)(t_s − t_t), which takes a velocity to the change of z that it makes."""
    return sum(alpha_sigma(logsnr_s)) * (flow_time(logsnr_s) - flow_time(logsnr_t))


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowEuler(Stateless):
    """Euler's method on dz_rf/dt = ε̂ − x̂ in rectified flow's t (Liu et al. 2022).

    z_rf(t_s) = z_rf(t_t) + (t_s − t_t) û. In z it is DDIM: order one, one evaluation a step.
    """

    def step(
        self,
        key: Key[Array, ""],
        denoise: Denoise,
        z: Float[Array, "b ..."],
        state: tuple[()],
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> tuple[Float[Array, "b ..."], tuple[()]]:
        return ddim_step(denoise(z, logsnr_t), logsnr_s), state


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowMidpoint(Stateless):
    """The midpoint method in rectified flow's t: order two, two evaluations a step.

    z_rf(t_s) = z_rf(t_t) + (t_s − t_t) û at (t_t + t_s)/2, reached by Euler's method. The middle is
    finite in λ whatever the ends are, so the steps from −inf and to +inf are of order two too.
    """

    def step(
        self,
        key: Key[Array, ""],
        denoise: Denoise,
        z: Float[Array, "b ..."],
        state: tuple[()],
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> tuple[Float[Array, "b ..."], tuple[()]]:
        prediction = denoise(z, logsnr_t)
        second = logsnr_t != logsnr_s
        # λ = 2 log((1 − t)/t), with t and 1 − t each a sum: no digits are lost at either end.
        noise = flow_time(logsnr_t) + flow_time(logsnr_s)
        signal = flow_time(-logsnr_t) + flow_time(-logsnr_s)
        middle = jnp.where(second, 2.0 * (jnp.log(signal) - jnp.log(noise)), logsnr_t)
        distance = _flow_distance(logsnr_t, logsnr_s)

        def corrected(z_s: Array) -> Array:
            velocity = denoise(ddim_step(prediction, middle), middle).velocity
            return z_s + distance * (velocity - prediction.velocity)

        return _if(second, corrected, ddim_step(prediction, logsnr_s)), state


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowHeun(Stateless):
    """Heun's method in rectified flow's t: order two, two evaluations a step.

    z_rf(t_s) = z_rf(t_t) + (t_s − t_t)(û_t + û_s)/2, û_s after Euler's step. A step to λ = +inf is
    Euler's, for networks are not made for t = 0.
    """

    def step(
        self,
        key: Key[Array, ""],
        denoise: Denoise,
        z: Float[Array, "b ..."],
        state: tuple[()],
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> tuple[Float[Array, "b ..."], tuple[()]]:
        prediction = denoise(z, logsnr_t)
        second = (logsnr_t != logsnr_s) & (logsnr_s != jnp.inf)
        distance = _flow_distance(logsnr_t, logsnr_s)

        def corrected(z_s: Array) -> Array:
            velocity = denoise(z_s, logsnr_s).velocity
            return z_s + 0.5 * distance * (velocity - prediction.velocity)

        return _if(second, corrected, ddim_step(prediction, logsnr_s)), state
