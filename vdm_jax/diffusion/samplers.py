"""Samplers: a grid of log-SNRs and a step rule, run by one `lax.scan`.

A rule takes z from λ_t to λ_s > λ_t. With q(z_s | z_t, x) Gaussian (VDM, Ho et al. 2022, §2),
everything follows from one number, c = 1 − e^{λ_t − λ_s}, which is also exact where a λ is
infinite: the lower bound of the reverse variance is σ̃² = c σ_s², the upper σ²_{t|s} = c σ_t².

The papers' own samplers and what wraps another rule are here, solvers of higher order in
`solvers.py`, grids in `grids.py`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm_jax.diffusion import solvers
from vdm_jax.diffusion.grids import logsnr_grid as logsnr_grid  # samplers.logsnr_grid
from vdm_jax.diffusion.plms import PLMS
from vdm_jax.diffusion.predictions import Prediction
from vdm_jax.diffusion.process import Denoiser
from vdm_jax.diffusion.schedules import alpha_sigma
from vdm_jax.diffusion.solvers import Denoise, Rule, Stateless, ddim_step, innovation
from vdm_jax.diffusion.unipc import UniPC


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstNoise:
    """The noise that sampling begins with.

    Attributes:
      scale: its standard deviation.
      shared: whether all frames have that of one.
    """

    scale: float = 1.0
    shared: bool = False

    def draw(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "b f h w c"]:
        """Noise of a shape (b, f, h, w, c)."""
        batch, frames, *rest = shape
        z = jax.random.normal(key, (batch, 1 if self.shared else frames, *rest))
        z = jnp.broadcast_to(z, shape)
        return z if self.scale == 1.0 else self.scale * z


@dataclasses.dataclass(frozen=True, kw_only=True)
class DDIM(Stateless):
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
        c = innovation(logsnr_t, logsnr_s)
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
class Ancestral(Stateless):
    """Ancestral sampling with interpolated variance (VDM, Ho et al. 2022, §2).

    z_s ~ N(μ̃(z_t, x̂), (σ̃²)^{1−γ} (σ²_{t|s})^γ). γ = 0 is the lower bound of the reverse variance,
    DDPM's σ² = β̃ ("fixed small"), exact for data that is a point; γ = 1 the upper, DDPM's σ² = β
    ("fixed large"), exact for white data (Ho et al. 2020, §3.2).
    """

    gamma: float = 0.3

    def __post_init__(self):
        if not 0.0 <= self.gamma <= 1.0:
            raise ValueError(f"Ancestral: gamma={self.gamma} must be in [0, 1]")

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
        c = innovation(logsnr_t, logsnr_s)
        # The paper's e^{λt−λs} (α_s/α_t) z + c α_s x̂ with z = α_t x̂ + σ_t ε̂: no quotient is left.
        mean = alpha_s * prediction.x + sigma_s * jnp.sqrt(1.0 - c) * prediction.eps
        # At λ_s = +inf z_s is x itself and γ = 1 too must add nothing (DDPM, algorithm 2, line 3).
        deviation = jnp.sqrt(c) * sigma_s ** (1.0 - self.gamma) * sigma_t**self.gamma
        deviation = jnp.where(sigma_s == 0.0, 0.0, deviation)
        return mean + deviation * jax.random.normal(key, z.shape, jnp.float32), state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distilled:
    """Imagen Video's sampler for distilled models (Ho et al. 2022, Imagen Video, §2.7): stochastic.

    From z at grid point i, DDIM over two steps to i + 2, then one stochastic step back by the
    forward process, z_{i+1} ~ q(z_{i+1} | z_{i+2}); the last step is DDIM's. A rule is not told
    the point after the next, so step i + 1 begins with the way back of step i: what a step returns
    is DDIM's z, which is final if the grid ends there, and the state holds the prediction from
    which the next step goes two steps far. One evaluation a step.
    """

    def init(self, z: Float[Array, "b ..."]) -> dict[str, Array]:
        return {"x": jnp.zeros_like(z), "eps": jnp.zeros_like(z), "started": jnp.zeros((), bool)}

    def step(
        self,
        key: Key[Array, ""],
        denoise: Denoise,
        z: Float[Array, "b ..."],
        state: Any,
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> tuple[Float[Array, "b ..."], Any]:
        (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(logsnr_t), alpha_sigma(logsnr_s)
        far = alpha_s * state["x"] + sigma_s * state["eps"]
        # q(z_t | z_s) has the mean (α_t/α_s) z_s and the variance σ²_{t|s} = c σ_t². Only both at
        # −inf is α_s = 0.
        ratio = jnp.where(alpha_s > 0.0, alpha_t / jnp.where(alpha_s > 0.0, alpha_s, 1.0), 1.0)
        c = innovation(logsnr_t, logsnr_s)
        noise = jax.random.normal(key, z.shape, jnp.float32)
        back = ratio * far + jnp.sqrt(c) * sigma_t * noise
        # A step of no length neither goes two steps far nor back.
        moved = logsnr_t != logsnr_s
        z = jnp.where(state["started"] & moved, back, z)
        prediction = denoise(z, logsnr_t)
        new = {"x": prediction.x, "eps": prediction.eps, "started": jnp.ones((), bool)}
        state = jax.tree.map(lambda fresh, old: jnp.where(moved, fresh, old), new, state)
        return jnp.where(moved, ddim_step(prediction, logsnr_s), z), state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Consistency(Stateless):
    """Multistep consistency sampling (Song et al. 2023, algorithm 1): z_s = α_s x̂ + σ_s ξ.

    For consistency models, whose x̂ is a sample from any z; of another model it is a sampler of no
    order.
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
        alpha_s, sigma_s = alpha_sigma(logsnr_s)
        noise = jax.random.normal(key, z.shape, jnp.float32)
        fresh = alpha_s * denoise(z, logsnr_t).x + sigma_s * noise
        return jnp.where(logsnr_t == logsnr_s, z, fresh), state


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corrector:
    """A Langevin step after each step of another rule (VDM, Ho et al. 2022, §2).

    z_s ← z_s − ½ δ σ_s ε̂(z_s) + √δ σ_s ξ, which is Langevin dynamics with the score −ε̂/σ_s and a
    step of δ σ_s²: the corrector of Song et al. 2021 (score SDE), with a fixed step. One more
    evaluation a step, but none after a step to λ = +inf. For data of variance V at λ_s its own
    error is a variance too large by the factor 1/(1 − δ σ_s²/4V).

    Attributes:
      rule: the predictor. `Distilled` does not go on from the z that it returned, so it has none.
      delta: δ, 0.1 in the paper.
    """

    rule: Rule
    delta: float = 0.1

    def __post_init__(self):
        if not 0.0 <= self.delta < 2.0:
            raise ValueError(f"Corrector: delta={self.delta} must be in [0, 2)")
        if isinstance(self.rule, Distilled):
            raise ValueError("Corrector: the sampler 'distilled' takes no corrector")

    def init(self, z: Float[Array, "b ..."]) -> Any:
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
        sigma_s = alpha_sigma(logsnr_s)[1]

        def corrected(z: Array) -> Array:
            noise = jax.random.normal(own_key, z.shape, jnp.float32)
            drift = 0.5 * self.delta * sigma_s * denoise(z, logsnr_s).eps
            return z - drift + math.sqrt(self.delta) * sigma_s * noise

        applies = (logsnr_t != logsnr_s) & (logsnr_s != jnp.inf)
        return jax.lax.cond(applies, corrected, lambda z: z, z), state


RULES: Mapping[str, type] = {
    "ddim": DDIM,
    "ancestral": Ancestral,
    "dpmpp_2m": solvers.DPMPP2M,
    "dpmpp_2m_sde": solvers.DPMPP2MSDE,
    "dpmpp_2s": solvers.DPMPP2S,
    "euler": solvers.Euler,
    "heun": solvers.Heun,
    "flow_euler": solvers.FlowEuler,
    "flow_midpoint": solvers.FlowMidpoint,
    "flow_heun": solvers.FlowHeun,
    "unipc": UniPC,
    "plms": PLMS,
    "distilled": Distilled,
    "consistency": Consistency,
}


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
            f"sampler {name!r} has no field {', '.join(unknown)}; allowed: "
            f"{', '.join(fields) or 'none'}"
        )
    return RULES[name](**kwargs)


def sample(
    key: Key[Array, ""],
    denoiser: Denoiser,
    rule: Rule,
    logsnrs: Float[Array, "steps_plus_1"],
    z_init: Float[Array, "b ..."],
    cond: Any = None,
    callback: Callable[[int, int], None] | None = None,
    watch: Callable[[Array, Array], None] | None = None,
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
      watch: called as `watch(step, x̂)` once, with traced arrays: the number of a step, from 1, and
        what is believed of x at its beginning.

    Returns:
      z, float32 whatever the network computes in.
    """
    if logsnrs.ndim != 1 or logsnrs.shape[0] < 2:
        raise ValueError(f"sample: logsnrs has shape {logsnrs.shape}; it must be (steps + 1,)")
    steps = logsnrs.shape[0] - 1
    logsnrs = jnp.asarray(logsnrs, jnp.float32)
    batch = z_init.shape[0]

    beliefs: list[Array] = []

    def denoise(z: Array, logsnr: Array) -> Prediction:
        prediction = denoiser(z, jnp.broadcast_to(logsnr, (batch,)), cond)
        beliefs.append(prediction.x)
        return prediction

    def body(carry: tuple[Array, Any], step: tuple[Array, Array, Array]):
        index, logsnr_t, logsnr_s = step
        beliefs.clear()
        z, state = rule.step(jax.random.fold_in(key, index), denoise, *carry, logsnr_t, logsnr_s)
        if watch is not None:
            # The first: a rule may ask for others inside of a branch, which are not seen here.
            watch(index + 1, beliefs[0])
        if callback is not None:
            # The barrier makes the report wait for the step that it reports.
            index, z = jax.lax.optimization_barrier((index, z))
            jax.debug.callback(lambda i: callback(int(i) + 1, steps), index)
        return (z, state), None

    z_init = z_init.astype(jnp.float32)
    xs = (jnp.arange(steps), logsnrs[:-1], logsnrs[1:])
    (z, _), _ = jax.lax.scan(body, (z_init, rule.init(z_init)), xs)
    return z
