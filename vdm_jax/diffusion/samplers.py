"""Samplers: a grid of log-SNRs and a step rule, run by one `lax.scan`.

A rule takes z from λ_t to λ_s > λ_t. With q(z_s | z_t, x) Gaussian (VDM, Ho et al. 2022, §2),
everything follows from one number, c = 1 − e^{λ_t − λ_s}, which is also exact where a λ is
infinite: the lower bound of the reverse variance is σ̃² = c σ_s², the upper σ²_{t|s} = c σ_t².
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm_jax.diffusion.predictions import Prediction
from vdm_jax.diffusion.process import Denoiser
from vdm_jax.diffusion.schedules import Schedule, alpha_sigma

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


def _innovation(logsnr_t: Float[Array, ""], logsnr_s: Float[Array, ""]) -> Float[Array, ""]:
    """c = 1 − e^{λ_t − λ_s} = 1 − (α_t σ_s / (α_s σ_t))², and 0 where the two are equal."""
    difference = jnp.where(logsnr_t == logsnr_s, 0.0, logsnr_t - logsnr_s)
    return -jnp.expm1(difference)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM:
    """DDIM (Song et al. 2021, eq. 12 and 16): z_s = α_s x̂ + √(σ_s² − η² c σ_s²) ε̂ + η √c σ_s ξ.

    η = 0 is deterministic and of first order, η = 1 is ancestral sampling with the lower variance.
    The form "angular" writes the same step with v (Salimans & Ho 2022, appendix D): a rotation of
    (z, v̂), cos(φ_s − φ_t) z + sin(φ_s − φ_t) v̂ at η = 0.
    """

    eta: float = 0.0
    form: str = "x_eps"

    def __post_init__(self):
        if not 0.0 <= self.eta <= 1.0:
            raise ValueError(f"DDIM: eta={self.eta} must be in [0, 1]")
        if self.form not in ("x_eps", "angular"):
            raise ValueError(f"DDIM: form={self.form!r} is unknown; allowed: x_eps, angular")

    def init(self, z: Float[Array, "b ..."]) -> tuple[()]:
        return ()

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
        alpha_s, sigma_s = alpha_sigma(logsnr_s)
        c = _innovation(logsnr_t, logsnr_s)
        kept = sigma_s * jnp.sqrt(1.0 - self.eta**2 * c)
        if self.form == "x_eps":
            mean = alpha_s * prediction.x + kept * prediction.eps
        else:
            alpha_t, sigma_t = alpha_sigma(logsnr_t)
            # x̂ = α_t z − σ_t v̂ and ε̂ = σ_t z + α_t v̂ in the line above. For η = 0 these are the
            # cosine and sine of φ_s − φ_t, without a cancelling difference of angles.
            cosine, sine = alpha_s * alpha_t + kept * sigma_t, kept * alpha_t - alpha_s * sigma_t
            mean = cosine * z + sine * prediction.v
        if self.eta == 0.0:
            return mean, state
        noise = jax.random.normal(key, z.shape, jnp.float32)
        return mean + self.eta * sigma_s * jnp.sqrt(c) * noise, state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ancestral:
    """Ancestral sampling with interpolated variance (VDM, Ho et al. 2022, §2).

    z_s ~ N(μ̃(z_t, x̂), (σ̃²)^{1−γ} (σ²_{t|s})^γ): γ = 0 is the lower bound of the reverse variance,
    γ = 1 the upper: exact for data that is a point and for white data (Ho et al. 2020, §3.2).
    """

    gamma: float = 0.3

    def __post_init__(self):
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"Ancestral: gamma={self.gamma} must be in [0, 1]")

    def init(self, z: Float[Array, "b ..."]) -> tuple[()]:
        return ()

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
        alpha_s, sigma_s = alpha_sigma(logsnr_s)
        _, sigma_t = alpha_sigma(logsnr_t)
        c = _innovation(logsnr_t, logsnr_s)
        # The paper's e^{λt−λs} (α_s/α_t) z + c α_s x̂ with z = α_t x̂ + σ_t ε̂: no quotient is left.
        mean = alpha_s * prediction.x + sigma_s * jnp.sqrt(1.0 - c) * prediction.eps
        # At λ_s = +inf z_s is x itself and γ = 1 too must add nothing (DDPM, algorithm 2, line 3).
        deviation = jnp.sqrt(c) * sigma_s ** (1.0 - self.gamma) * sigma_t**self.gamma
        deviation = jnp.where(sigma_s == 0.0, 0.0, deviation)
        return mean + deviation * jax.random.normal(key, z.shape, jnp.float32), state


RULES: Mapping[str, type] = {"ddim": DDIM, "ancestral": Ancestral}


def make_rule(name: str, **kwargs) -> Rule:
    """The step rule called `name` in `RULES`, with its fields from `kwargs`.

    Raises:
      ValueError: unknown name, unknown field, or a field's value out of its range.
    """
    if name not in RULES:
        raise ValueError(f"sampler={name!r} is unknown; allowed: {', '.join(RULES)}")
    fields = [field.name for field in dataclasses.fields(RULES[name])]
    unknown = sorted(set(kwargs) - set(fields))
    if unknown:
        raise ValueError(
            f"sampler {name!r} has no field {', '.join(unknown)}; allowed: {', '.join(fields)}"
        )
    return RULES[name](**kwargs)


def logsnr_grid(
    schedule: Schedule,
    steps: int,
    end: str = "clean",
) -> Float[Array, "{steps}+1"]:
    """The `steps` + 1 increasing log-SNRs of a sampler, uniform in the schedule's time.

    Args:
      schedule: the noise schedule.
      steps: number of steps, at least 1.
      end: "clean": t = 1, 1 − 1/steps, …, 1/steps, then +inf in place of t = 0, so that the last
        step returns x̂. "append": t from 1 to 0 in steps − 1 intervals, then +inf (EDM's eq. 5).
        "schedule": t from 1 to 0; what is returned keeps the noise of t = 0.
    """
    if steps < 1:
        raise ValueError(f"logsnr_grid: steps={steps} must be at least 1")
    if end not in ("clean", "append", "schedule"):
        raise ValueError(f"logsnr_grid: end={end!r} is unknown; allowed: clean, append, schedule")
    times = jnp.linspace(1.0, 0.0, steps if end == "append" else steps + 1)
    logsnrs = schedule(times)
    if end == "append":
        return jnp.append(logsnrs, jnp.inf)
    return logsnrs.at[-1].set(jnp.inf) if end == "clean" else logsnrs


def sample(
    key: Key[Array, ""],
    denoiser: Denoiser,
    rule: Rule,
    logsnrs: Float[Array, "steps_plus_1"],
    z_init: Float[Array, "b ..."],
    cond: Any = None,
    callback: Callable[[int, int], None] | None = None,
) -> Float[Array, "b ..."]:
    """Runs `rule` over the grid and returns z at its end; nothing of the way is kept.

    Args:
      key: noise of stochastic rules: step i uses `fold_in(key, i)`.
      denoiser: guided or not.
      rule: how a step is done.
      logsnrs: increasing λ, `[steps + 1]`. It may be traced: under jit, grids of one length share
        one compilation. Repeated values are steps that do nothing.
      z_init: z at `logsnrs[0]`; standard normal noise for generation.
      cond: the denoiser's condition.
      callback: called as `callback(step, steps)` after each step, from 1 to `steps`, on the host.

    Returns:
      z, float32 whatever the network computes in.
    """
    if logsnrs.ndim != 1 or logsnrs.shape[0] < 2:
        raise ValueError(f"sample: logsnrs has shape {logsnrs.shape}; it must be (steps + 1,)")
    steps = logsnrs.shape[0] - 1
    logsnrs = jnp.asarray(logsnrs, jnp.float32)
    batch = z_init.shape[0]

    def denoise(z: Array, logsnr: Array) -> Prediction:
        return denoiser(z, jnp.broadcast_to(logsnr, (batch,)), cond)

    def body(carry: tuple[Array, Any], step: tuple[Array, Array, Array]):
        index, logsnr_t, logsnr_s = step
        z, state = rule.step(jax.random.fold_in(key, index), denoise, *carry, logsnr_t, logsnr_s)
        if callback is not None:
            # The barrier makes the report wait for the step that it reports.
            index, z = jax.lax.optimization_barrier((index, z))
            jax.debug.callback(lambda i: callback(int(i) + 1, steps), index)
        return (z, state), None

    z_init = z_init.astype(jnp.float32)
    xs = (jnp.arange(steps), logsnrs[:-1], logsnrs[1:])
    (z, _), _ = jax.lax.scan(body, (z_init, rule.init(z_init)), xs)
    return z
