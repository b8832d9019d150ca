"""A network that takes known frames at t = 0 beside patches at the noise level (masked-frame
conditioning; Zheng et al. 2024, Open-Sora 1.1)."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.diffusion.predictions import check_kind, to_prediction
from vdm_jax.diffusion.schedules import expand
from vdm_jax.stage.protocols import Cond


@dataclasses.dataclass(frozen=True, kw_only=True)
class KnownFrames:
    """The prediction at known frames is their own value, and its error has no weight in the loss.

    The network finds it as `cond["masked_video"]` where `cond["mask"]` is 1 (`MaskedVideo`), in the
    place of z and without noise. Without these entries nothing is known.

    Attributes:
      prediction: what the network predicts, one of `predictions.KINDS`.
    """

    prediction: str

    def __post_init__(self):
        check_kind(self.prediction)

    def output(
        self,
        raw: Float[Array, "b f h w c"],
        z: Float[Array, "b f h w c"],
        logsnr: Float[Array, "b"],
        cond: Cond,
    ) -> Float[Array, "b f h w c"]:
        """See `Parametrisation`."""
        if "mask" not in cond:
            return raw
        known = to_prediction("x", jnp.asarray(cond["masked_video"]), z, logsnr)
        return jnp.where(jnp.asarray(cond["mask"]) != 0, getattr(known, self.prediction), raw)

    def weight(self, logsnr: Float[Array, "b"], cond: Cond) -> Float[Array, "b *frames"]:
        """See `Parametrisation`: each example's mean is over what is not known."""
        if "mask" not in cond:
            return jnp.ones_like(logsnr)
        unknown = 1.0 - jnp.asarray(cond["mask"])
        share = unknown.mean(axis=(1, 2, 3, 4))
        return unknown / expand(jnp.maximum(share, 1.0 / unknown[0].size), unknown.ndim)
