"""What a network predicts, and how each prediction becomes every other.

With z = α x + σ ε (and rectified flow's t = σ/(α+σ)):

    kind      target                 x̂                    ε̂
    x         x                      output               (z − α x̂)/σ
    eps       ε                      (z − σ ε̂)/α          output
    v         α ε − σ x              α z − σ v            σ z + α v
    score     −ε/σ                   (z + σ² s)/α         −σ s
    velocity  ε − x                  (z − σ u)/(α+σ)      (z + α u)/(α+σ)

v is Salimans & Ho 2022, appendix D; the velocity is Liu et al. 2022's on z_rf = z/(α+σ). EDM's
preconditioned network output (Karras et al. 2022, table 1) with σ_data = 1 is −v.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from vdm_jax.diffusion.schedules import alpha_sigma, expand

KINDS = ("x", "eps", "v", "score", "velocity")


def _divide(numerator: Float[Array, "b ..."], denominator: Float[Array, "..."]):
    """numerator / denominator, and 0 where the denominator is 0.

    That is the case at λ = ±inf only, where z does not determine the quotient: at +inf the ε of
    an x prediction (whose limit is 0: ε̂ = −σ score), at −inf the x of an ε prediction.
    """
    safe = jnp.where(denominator == 0, 1.0, denominator)
    return jnp.where(denominator == 0, 0.0, numerator / safe)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """A denoiser's belief about the clean data x and the noise ε behind z, in every form.

    All of `z`, `x`, `eps` are float32 `[b, ...]` with z = α x + σ ε, `logsnr` is `[b]`.
    """

    # Any, not Array: jax's tree functions rebuild the class with whatever they map leaves to,
    # and the tests check annotations at run time.
    z: Any
    logsnr: Any
    x: Any
    eps: Any

    def _alpha_sigma(self) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
        alpha, sigma = alpha_sigma(self.logsnr)
        return expand(alpha, self.z.ndim), expand(sigma, self.z.ndim)

    @property
    def v(self) -> Float[Array, "b ..."]:
        """v = α ε − σ x."""
        alpha, sigma = self._alpha_sigma()
        return alpha * self.eps - sigma * self.x

    @property
    def score(self) -> Float[Array, "b ..."]:
        """∇_z log p(z) = −ε/σ; 0 at λ = +inf, where it is undefined."""
        return -_divide(self.eps, self._alpha_sigma()[1])

    @property
    def velocity(self) -> Float[Array, "b ..."]:
        """dz_rf/dt = ε − x of rectified flow."""
        return self.eps - self.x

    def with_x(self, x: Float[Array, "b ..."]) -> "Prediction":
        """The prediction with clean data `x`, its noise recomputed from z."""
        return to_prediction("x", x, self.z, self.logsnr)

    def with_eps(self, eps: Float[Array, "b ..."]) -> "Prediction":
        """The prediction with noise `eps`, its clean data recomputed from z."""
        return to_prediction("eps", eps, self.z, self.logsnr)


def check_kind(kind: str) -> None:
    """Raises ValueError unless `kind` is one of `KINDS`."""
    if kind not in KINDS:
        raise ValueError(f"prediction={kind!r} is unknown; allowed: {', '.join(KINDS)}")


def to_prediction(
    kind: str,
    output: Float[Array, "b ..."],
    z: Float[Array, "b ..."],
    logsnr: Float[Array, "b"],
) -> Prediction:
    """A network's raw `output` of the given kind, for the noised `z` at `logsnr`.

    v and velocity are exact at any λ, ±inf included. x (towards λ = +inf) and eps, score
    (towards −inf) multiply rounding by up to e^{|λ|/2}, as their formulas do.

    Raises:
      ValueError: unknown kind, or an output that is not shaped like z.
    """
    check_kind(kind)
    if output.shape != z.shape:
        raise ValueError(f"network output has shape {output.shape}, its input z {z.shape}")
    # Arithmetic in float32 whatever the network computes in: the quotients need the digits.
    output, z = output.astype(jnp.float32), z.astype(jnp.float32)
    logsnr = jnp.asarray(logsnr, jnp.float32)
    alpha, sigma = (expand(c, z.ndim) for c in alpha_sigma(logsnr))
    if kind == "x":
        x, eps = output, _divide(z - alpha * output, sigma)
    elif kind == "eps":
        x, eps = _divide(z - sigma * output, alpha), output
    elif kind == "v":
        x, eps = alpha * z - sigma * output, sigma * z + alpha * output
    elif kind == "score":
        x, eps = _divide(z + sigma**2 * output, alpha), -sigma * output
    else:
        total = alpha + sigma
        x, eps = (z - sigma * output) / total, (z + alpha * output) / total
    return Prediction(z=z, logsnr=logsnr, x=x, eps=eps)


def target(
    kind: str,
    x: Float[Array, "b ..."],
    eps: Float[Array, "b ..."],
    logsnr: Float[Array, "b"],
) -> Float[Array, "b ..."]:
    """What a network of the given kind should output for z = α x + σ ε."""
    check_kind(kind)
    if kind == "x":
        return x
    if kind == "eps":
        return eps
    if kind == "velocity":
        return eps - x
    alpha, sigma = (expand(c, x.ndim) for c in alpha_sigma(logsnr))
    return alpha * eps - sigma * x if kind == "v" else -_divide(eps, sigma)
