"""PLMS (Liu et al. 2022, PNDM, arXiv 2202.09778, appendix A.3's F-PNDM): a linear multistep rule of
order four, the default of Stable Diffusion 1.x."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm_jax.diffusion.predictions import check_kind, to_prediction
from vdm_jax.diffusion.solvers import Denoise, ddim_step

_KEPT = 3  # outputs before the newest
# Adams and Bashforth's weights, the newest output first (the paper's equation 12), by the number of
# outputs that there are before it.
_WEIGHTS = (
    (1.0, 0.0, 0.0, 0.0),
    (3 / 2, -1 / 2, 0.0, 0.0),
    (23 / 12, -16 / 12, 5 / 12, 0.0),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PLMS:
    """A step of DDIM with the outputs of the last steps extrapolated: deterministic.

    The first step is DDIM's, repeated from where it began with the mean of the outputs at both
    ends, which takes a second evaluation. Each later step takes one. The order is two, then three,
    then four, as outputs gather. The weights are those of equal steps in the timestep.

    Attributes:
      prediction: the output that is extrapolated, one of `predictions.KINDS`. In the published
        code it is what the network predicts.
    """

    prediction: str = "eps"

    def __post_init__(self):
        check_kind(self.prediction)

    def init(self, z: Float[Array, "b ..."]) -> dict[str, Array]:
        """The outputs of the last steps, the newest first, and how many there are."""
        before = jnp.zeros((_KEPT, *z.shape), z.dtype)
        return {"before": before, "count": jnp.zeros((), jnp.int32)}

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
        output = getattr(denoise(z, logsnr_t), self.prediction)
        before, count = state["before"], state["count"]
        weights = jnp.asarray(_WEIGHTS)[count]
        extrapolated = weights[0] * output + jnp.tensordot(weights[1:], before, 1)
        reached = self.reached(logsnr_t, logsnr_s)
        z_s = self._moved(extrapolated, z, logsnr_t, reached)

        def corrected(z_s: Array) -> Array:
            other = getattr(denoise(z_s, logsnr_s), self.prediction)
            return self._moved((output + other) / 2, z, self.begun(logsnr_t, logsnr_s), logsnr_s)

        moved = logsnr_t != logsnr_s
        first = moved & (count == 0) & (logsnr_s != jnp.inf)
        z_s = jax.lax.cond(first, corrected, lambda z_s: z_s, z_s)
        after = {
            "before": jnp.concatenate([output[None], before[:-1]]),
            "count": jnp.minimum(count + 1, _KEPT),
        }
        state = jax.tree.map(lambda new, old: jnp.where(moved, new, old), after, state)
        return jnp.where(moved, z_s, z), state

    def reached(self, logsnr_t: Float[Array, ""], logsnr_s: Float[Array, ""]) -> Float[Array, ""]:
        """λ that a step leads to, given where it begins and where the next one does."""
        return logsnr_s

    def begun(self, logsnr_t: Float[Array, ""], logsnr_s: Float[Array, ""]) -> Float[Array, ""]:
        """λ that z has where the first step is repeated."""
        return logsnr_t

    def _moved(self, output: Array, z: Array, start: Array, end: Array) -> Array:
        prediction = to_prediction(self.prediction, output, z, jnp.broadcast_to(start, len(z)))
        return ddim_step(prediction, end)
