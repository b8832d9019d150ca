"""z from x along the deterministic ODE: the way of a sampler in reverse, over the same grid.

The probability-flow ODE is dz = x̂ dα + ε̂ dσ, where the denoiser predicts x̂ and ε̂ from z at λ. A
deterministic sampler follows it from noise to data, an inversion from data to noise. An inversion
step takes z from λ_s to the noisier λ_t < λ_s. λ_s may be +inf, where z is x: no step evaluates the
denoiser there.

    inversion    evaluations a step   z at the end of the grid
    first        1                    near the ODE's, order 1
    second       2                    near the ODE's, order 2
    fixed_point  1 + k of the rule's  the one that the rule takes to x

`FirstOrder` and `SecondOrder` do not depend on the rule that later samples from z, so the sampler's
own error remains in a round trip. `FixedPoint` inverts the rule itself.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.diffusion import solvers
from vdm_jax.diffusion.predictions import Prediction
from vdm_jax.diffusion.process import Denoiser
from vdm_jax.diffusion.samplers import DDIM
from vdm_jax.diffusion.schedules import alpha_sigma
from vdm_jax.diffusion.solvers import Denoise, Rule

# Rules without memory: one step is a function of z.
_ONE_STEP = (
    *(DDIM, solvers.DPMPP2S, solvers.Euler),
    *(solvers.FlowEuler, solvers.FlowMidpoint, solvers.FlowHeun),
)
# Relative to the mean square of the differences. float32 resolves 1e-7.
_RIDGE = 1e-6


@runtime_checkable
class Inversion(Protocol):
    """One step of an inversion."""

    def step(
        self,
        denoise: Denoise,
        rule: Rule,
        z: Float[Array, "b ..."],
        logsnr_s: Float[Array, ""],
        logsnr_t: Float[Array, ""],
    ) -> Float[Array, "b ..."]:
        """z at λ_t < λ_s from z at λ_s.

        `denoise(z, logsnr)` takes a scalar λ. rule: which samples from λ_t to λ_s.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstOrder:
    """DDIM inversion (Song et al. 2021, section 4.3; Dhariwal & Nichol 2021, appendix F):
    z_t = α_t (z_s − σ_s ε̂)/α_s + σ_t ε̂, with ε̂ of z_s at λ_t, as Tune-A-Video's code does."""

    def step(
        self,
        denoise: Denoise,
        rule: Rule,
        z: Float[Array, "b ..."],
        logsnr_s: Float[Array, ""],
        logsnr_t: Float[Array, ""],
    ) -> Float[Array, "b ..."]:
        (alpha_s, sigma_s), (alpha_t, sigma_t) = alpha_sigma(logsnr_s), alpha_sigma(logsnr_t)
        eps = denoise(z, logsnr_t).eps
        return alpha_t * (z - sigma_s * eps) / alpha_s + sigma_t * eps


@dataclasses.dataclass(frozen=True, kw_only=True)
class SecondOrder:
    """The midpoint method in the angle φ, where α = cos φ and σ = sin φ. A step of `FirstOrder`
    leads to the middle, and z_t = z_s + (α_t − α_s) x̂ + (σ_t − σ_s) ε̂ with the x̂ and ε̂ of
    there."""

    def step(
        self,
        denoise: Denoise,
        rule: Rule,
        z: Float[Array, "b ..."],
        logsnr_s: Float[Array, ""],
        logsnr_t: Float[Array, ""],
    ) -> Float[Array, "b ..."]:
        (alpha_s, sigma_s), (alpha_t, sigma_t) = alpha_sigma(logsnr_s), alpha_sigma(logsnr_t)
        angle = 0.5 * (jnp.arctan2(sigma_s, alpha_s) + jnp.arctan2(sigma_t, alpha_t))
        middle = -2.0 * jnp.log(jnp.tan(angle))
        prediction = denoise(FirstOrder().step(denoise, rule, z, logsnr_s, middle), middle)
        return z + (alpha_t - alpha_s) * prediction.x + (sigma_t - sigma_s) * prediction.eps


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """Solves F(z_t) = z_s for z_t, where F is the rule's step (Pan et al. 2023, section 3).

    The residual is r = (z_s − F(z))/cos δ, where δ is the angle of the step. For DDIM z + r is the
    step in reverse with the v̂ of z. Where z carries little of x, as in the last step to λ = +inf,
    z ← z + r converges slowly. Anderson mixing (Walker & Ni 2011, algorithm AA) therefore combines
    the last iterates: per example it minimises the residual over their affine combinations.

    The result is the iterate of the least residual, because differences that are mere rounding lead
    away from a solution. A z_s to which no z_t leads, such as a frame that the denoiser never
    predicts, has no solution.

    Attributes:
      iterations: k, evaluations of F in a step. They begin at the z of `FirstOrder`.
      memory: the earlier iterates that are combined; 0 = z ← z + r.
    """

    iterations: int = 10
    memory: int = 4

    def __post_init__(self):
        if self.iterations < 1:
            raise ValueError(f"iterations = {self.iterations}: must be at least 1")
        if self.memory < 0:
            raise ValueError(f"memory = {self.memory}: must not be negative")

    def step(
        self,
        denoise: Denoise,
        rule: Rule,
        z: Float[Array, "b ..."],
        logsnr_s: Float[Array, ""],
        logsnr_t: Float[Array, ""],
    ) -> Float[Array, "b ..."]:
        (alpha_s, sigma_s), (alpha_t, sigma_t) = alpha_sigma(logsnr_s), alpha_sigma(logsnr_t)
        cosine = alpha_s * alpha_t + sigma_s * sigma_t
        key, shape = jax.random.key(0), z.shape  # no allowed rule draws noise

        def residual(guess: Array) -> Array:
            reached, _ = rule.step(
                key, denoise, guess.reshape(shape), rule.init(z), logsnr_t, logsnr_s
            )
            return ((z - reached) / cosine).reshape(len(guess), -1)

        def iterate(index: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
            guess, last_guess, last_r, guesses, residuals, best, least = carry
            r = residual(guess)
            length = jnp.linalg.norm(r, axis=1)
            best = jnp.where((length < least)[:, None], guess, best)
            least = jnp.fmin(least, length)
            following = guess + r
            if self.memory:
                at = (index - 1) % self.memory  # in place of the oldest difference
                first = index == 0
                guesses = guesses.at[at].set(jnp.where(first, 0.0, guess - last_guess))
                residuals = residuals.at[at].set(jnp.where(first, 0.0, r - last_r))
                weights = _least_squares(residuals, r)
                following -= jnp.einsum("bm,mbd->bd", weights, guesses + residuals)
            return following, guess, r, guesses, residuals, best, least

        start = FirstOrder().step(denoise, rule, z, logsnr_s, logsnr_t).reshape(len(z), -1)
        history, zeros = jnp.zeros((self.memory, *start.shape)), jnp.zeros_like(start)
        carry = (start, start, zeros, history, history, start, jnp.full(len(z), jnp.inf))
        *_, best, _ = jax.lax.fori_loop(0, self.iterations, iterate, carry)
        return best.reshape(shape)


INVERSIONS: Mapping[str, type] = {
    "first": FirstOrder,
    "second": SecondOrder,
    "fixed_point": FixedPoint,
}


def make_inversion(name: str) -> Inversion:
    """The inversion called `name` in `INVERSIONS`. Raises ValueError for another name."""
    if name not in INVERSIONS:
        raise ValueError(f"inversion = {name!r}: allowed are {', '.join(INVERSIONS)}")
    return INVERSIONS[name]()


def is_invertible(rule: Rule) -> bool:
    """Whether a step of the rule is a function of z alone: without noise and without memory."""
    noise = getattr(rule, "eta", 0.0) or getattr(rule, "churn", 0.0)
    return isinstance(rule, _ONE_STEP) and not noise


def check_rule(rule: Rule) -> None:
    """Raises ValueError for a rule that is not invertible."""
    if not is_invertible(rule):
        raise ValueError(
            f"sampler = {rule}: draws noise or remembers earlier steps, so it has no inverse; "
            "allowed are ddim with eta = 0, dpmpp_2s, euler and heun without churn, flow_euler, "
            "flow_midpoint and flow_heun"
        )


def invert(
    denoiser: Denoiser,
    inversion: Inversion,
    rule: Rule,
    logsnrs: Float[Array, "steps_plus_1"],
    x: Float[Array, "b ..."],
    cond: Any = None,
) -> Float[Array, "b ..."]:
    """z at the beginning of a sampler's grid, from which `rule` samples x, by one `lax.scan`.

    Args:
      denoiser: guided or not; the one that samples.
      inversion: how a step is done.
      rule: how the sampler steps.
      logsnrs: increasing λ, `[steps + 1]`, as `samplers.sample` takes them. Repeated values are
        steps that do nothing.
      x: z at `logsnrs[-1]`: clean data where that is +inf.
      cond: the denoiser's condition.

    Returns:
      z, float32 whatever the network computes in.

    Raises ValueError for a rule that draws noise or remembers earlier steps.
    """
    if logsnrs.ndim != 1 or logsnrs.shape[0] < 2:
        raise ValueError(f"invert: logsnrs has shape {logsnrs.shape}; it must be (steps + 1,)")
    check_rule(rule)
    logsnrs = jnp.asarray(logsnrs, jnp.float32)

    def denoise(z: Array, logsnr: Array) -> Prediction:
        return denoiser(z, jnp.broadcast_to(logsnr, (len(z),)), cond)

    def body(z: Array, levels: tuple[Array, Array]) -> tuple[Array, None]:
        logsnr_t, logsnr_s = levels
        moved = inversion.step(denoise, rule, z, logsnr_s, logsnr_t)
        return jnp.where(logsnr_t == logsnr_s, z, moved), None

    pairs = (logsnrs[:-1], logsnrs[1:])
    return jax.lax.scan(body, x.astype(jnp.float32), pairs, reverse=True)[0]


def _least_squares(
    differences: Float[Array, "m b d"], residual: Float[Array, "b d"]
) -> Float[Array, "b m"]:
    """For each example the weights of `differences` whose sum is nearest to `residual`."""
    # Each difference in units of its own length: they shrink as the iteration converges.
    lengths = jnp.sqrt(jnp.sum(differences**2, axis=-1))
    units = differences / jnp.where(lengths > 0, lengths, 1.0)[..., None]
    products = jnp.einsum("mbd,nbd->bmn", units, units, precision="highest")
    wanted = jnp.einsum("mbd,bd->bm", units, residual, precision="highest")
    ridge = _RIDGE * jnp.eye(len(units))
    weights = jnp.linalg.solve(products + ridge, wanted[..., None])[..., 0]
    return jnp.where(lengths > 0, weights.T / jnp.where(lengths > 0, lengths, 1.0), 0.0).T
