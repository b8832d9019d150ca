"""Denoising steps that reuse the prediction of an earlier one where it would hardly change.

TeaCache (Liu et al. 2024, Timestep embedding tells) finds these steps by how far the embedding of
the noise level has moved since the last evaluation. That embedding does not depend on the sample,
so which steps are computed is known before sampling begins. TeaCache keeps the residual of all
blocks; here the predicted velocity ε - x is kept, which is possible with any network.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from vdm_jax.diffusion.predictions import Prediction, to_prediction
from vdm_jax.diffusion.solvers import Denoise, Rule


def computed_steps(
    embeddings: Float[Array, "steps c"], threshold: float | Float[Array, ""]
) -> Bool[Array, "steps"]:
    """Whether each step evaluates the network.

    The relative changes |e_i - e_{i-1}|₁ / |e_{i-1}|₁ from step to step are added up; a step whose
    sum reaches `threshold` is computed, and the sum starts again (Liu et al. 2024, equations 5 and
    6). The first and the last step are always computed.

    embeddings: of the noise level of each step.
    """
    before = jnp.abs(embeddings[:-1]).sum(-1)
    changes = jnp.abs(jnp.diff(embeddings, axis=0)).sum(-1) / before

    def advance(total: Array, change: Array) -> tuple[Array, Array]:
        total = total + change
        computed = total >= threshold
        return jnp.where(computed, 0.0, total), computed

    _, computed = jax.lax.scan(advance, jnp.zeros(()), changes)
    return jnp.concatenate([jnp.ones(1, bool), computed]).at[-1].set(True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reuse:
    """A rule whose denoiser is not evaluated at some steps, but repeats the velocity that it
    predicted last.

    Attributes:
      rule: it evaluates the denoiser once a step.
      threshold: see `computed_steps`; 0 = every step is computed.
      logsnrs, computed: of each step, where it begins and whether it is computed; `at` sets them.
    """

    rule: Rule
    threshold: float
    logsnrs: Any = None
    computed: Any = None

    def __post_init__(self):
        if not self.threshold >= 0:
            raise ValueError(f"reuse = {self.threshold}: must not be negative")

    def at(self, logsnrs: Float[Array, "steps"], embeddings: Float[Array, "steps c"]) -> "Reuse":
        """The rule for steps that begin at these log-SNRs, whose embeddings these are."""
        computed = computed_steps(embeddings, self.threshold)
        return dataclasses.replace(self, logsnrs=logsnrs, computed=computed)

    def init(self, z: Float[Array, "b ..."]) -> Any:
        return jnp.zeros_like(z), self.rule.init(z)

    def step(
        self,
        key: Key[Array, ""],
        denoise: Denoise,
        z: Float[Array, "b ..."],
        state: Any,
        logsnr_t: Float[Array, ""],
        logsnr_s: Float[Array, ""],
    ) -> tuple[Float[Array, "b ..."], Any]:
        kept, inner = state
        place = jnp.argmin(jnp.where(self.logsnrs >= logsnr_t, self.logsnrs, jnp.inf))
        computed = self.computed[place]
        found: list[Array] = []

        def reusing(z: Array, logsnr: Array) -> Prediction:
            if found:
                raise ValueError("reuse: this sampler evaluates the network several times a step")
            velocity = jax.lax.cond(
                computed, lambda z: denoise(z, logsnr).velocity, lambda z: kept, z
            )
            found.append(velocity)
            return to_prediction("velocity", velocity, z, jnp.broadcast_to(logsnr, z.shape[:1]))

        z, inner = self.rule.step(key, reusing, z, inner, logsnr_t, logsnr_s)
        return z, (found[0], inner)
