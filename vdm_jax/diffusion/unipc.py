"""UniPC (Zhao et al. 2023, arXiv 2302.04867): a predictor whose steps are corrected by the next
evaluation of the denoiser, so that the corrector costs nothing."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm_jax.diffusion.schedules import alpha_sigma
from vdm_jax.diffusion.solvers import Denoise

_VARIANTS = ("bh1", "bh2")


@dataclasses.dataclass(frozen=True, kw_only=True)
class UniPC:
    """UniPC-2 with data prediction (the paper's algorithms 5 and 6), as published samplers run it.

    With h half the difference of log-SNRs, x̂_0 the prediction at the step's begin and x̂_1 the one
    before it, a step is z_s = (σ_s/σ_t) z - α_s ((e^{-h} - 1) x̂_0 + B Σ ρ_k D_k), D_1 = (x̂_1 - x̂_0)
    / r_1. The corrector repeats the last step with the new x̂ as a further difference. It does not
    evaluate the denoiser again at the corrected z. The first step, and one to λ = +inf, are of
    first order, which is DDIM.

    Attributes:
      variant: "bh2", B = e^{-h} - 1, or "bh1", B = -h (section 3.1).
      order: of the predictor, 1 or 2. The corrector adds one.
    """

    variant: str = "bh2"
    order: int = 2

    def __post_init__(self):
        if self.variant not in _VARIANTS:
            raise ValueError(
                f"UniPC: variant={self.variant!r} is unknown; allowed: {', '.join(_VARIANTS)}"
            )
        if self.order not in (1, 2):
            raise ValueError(f"UniPC: order={self.order} must be 1 or 2")

    def init(self, z: Float[Array, "b ..."]) -> dict[str, Array]:
        """The last step: where it began and with what; `steps` counts those made, up to 2."""
        zeros, scalar = jnp.zeros_like(z), jnp.zeros((), jnp.float32)
        names = ("z", "x", "before")
        levels = dict.fromkeys(("logsnr", "logsnr_before"), scalar)
        return {**dict.fromkeys(names, zeros), **levels, "steps": jnp.zeros((), jnp.int32)}

    def step(
        self,
        key: Key[Array, ""],
        denoise: Denoise,
        z: Float[Array, "b ..."],
        state: Any,
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> tuple[Float[Array, "b ..."], Any]:
        """See `solvers.Rule`."""
        x = denoise(z, logsnr_t).x
        z_t = jnp.where(state["steps"] > 0, self._corrected(x, state, logsnr_t), z)
        second = (state["steps"] > 0) & (self.order > 1)
        taken = {
            "z": z_t,
            "x": x,
            "before": state["x"],
            "logsnr": logsnr_t,
            "logsnr_before": state["logsnr"],
            "steps": jnp.minimum(state["steps"] + 1, 2),
        }
        ratio, difference, _ = _difference(taken, logsnr_s, second)
        base, gain = self._step(taken, logsnr_s)
        z_s = base + gain * 0.5 * difference / ratio
        stays = logsnr_t == logsnr_s
        kept = {name: jnp.where(stays, state[name], value) for name, value in taken.items()}
        return jnp.where(stays, z, z_s), kept

    def _corrected(
        self, x: Float[Array, "b ..."], state: Any, logsnr_t: Float[Array, ""]
    ) -> Float[Array, "b ..."]:
        """The end of the last step, made again with what the denoiser returns there."""
        # Before the first step what comes of this is not used, but its gradient must be finite.
        logsnr_t = jnp.where(state["steps"] > 0, logsnr_t, state["logsnr"])
        second = (state["steps"] > 1) & (self.order > 1)
        ratio, difference, second = _difference(state, logsnr_t, second)
        h = _half_step(state, logsnr_t)
        h = jnp.where(second, h, 1.0)  # used for two differences alone
        # The moments of the paper's equation 11.
        phi = jnp.expm1(-h)
        first = phi / -h - 1
        scale = -h if self.variant == "bh1" else phi
        b_1, b_2 = first / scale, 2 * (first / -h - 0.5) / scale
        rho_before = jnp.where(second, (b_1 - b_2) / (1 - ratio), 0.0)
        rho = jnp.where(second, b_1 - rho_before, 0.5)
        base, gain = self._step(state, logsnr_t)
        changed = rho_before * difference / ratio + rho * (x - state["x"])
        return base + gain * changed

    def _step(
        self, state: Any, logsnr_s: Float[Array, ""]
    ) -> tuple[Float[Array, "b ..."], Float[Array, ""]]:
        """The step of first order from where `state` began it, and the factor -α_s B of what is
        added to it."""
        (_, sigma_t), (alpha_s, sigma_s) = alpha_sigma(state["logsnr"]), alpha_sigma(logsnr_s)
        h = _half_step(state, logsnr_s)
        phi = jnp.expm1(-h)
        base = sigma_s / sigma_t * state["z"] - alpha_s * phi * state["x"]
        if self.variant == "bh1":
            return base, alpha_s * jnp.where(jnp.isfinite(h), h, 0.0)
        return base, -alpha_s * phi


def _half_step(state: Any, logsnr: Float[Array, ""]) -> Float[Array, ""]:
    """h of a step from where `state` began it; 0 of a step of no length."""
    begin = state["logsnr"]
    return jnp.where(begin == logsnr, 0.0, 0.5 * (logsnr - begin))


def _difference(
    state: Any, logsnr: Float[Array, ""], wanted: Array
) -> tuple[Float[Array, ""], Float[Array, "b ..."], Array]:
    """r_1, x̂_1 - x̂_0, and whether there is such a difference where it is wanted; if not, the first
    two are -1 and 0."""
    h, back = _half_step(state, logsnr), 0.5 * (state["logsnr_before"] - state["logsnr"])
    usable = wanted & jnp.isfinite(h) & jnp.isfinite(back) & (h > 0) & (back < 0)
    ratio = jnp.where(usable, back, -1.0) / jnp.where(usable, h, 1.0)
    return ratio, jnp.where(usable, state["before"] - state["x"], 0.0), usable
