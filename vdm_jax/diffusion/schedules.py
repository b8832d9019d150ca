"""Noise schedules: maps from a time t in [0, 1] to log-SNR λ, decreasing in t.

Every schedule is a frozen dataclass that is called as `schedule(t)` and has
`schedule.inverse(logsnr)`. Other people's time conventions meet ours here and nowhere else:

    convention              noised sample                 relation to λ
    variance preserving     z = α x + σ ε                 α² = sigmoid(λ), σ² = sigmoid(−λ)
    variance exploding, EDM z_ve = x + s ε = z / α        s = exp(−λ/2)
    rectified flow          z_rf = (1−t) x + t ε          t = sigmoid(−λ/2), z_rf = z / (α+σ)
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import ClassVar, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


@runtime_checkable
class Schedule(Protocol):
    """What every schedule can do."""

    def __call__(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        """Log-SNR at the times `t` in [0, 1]; t = 0 is data, t = 1 is noise."""

    def inverse(self, logsnr: Float[Array, "..."]) -> Float[Array, "..."]:
        """The times in [0, 1] at which the schedule has `logsnr`; ends beyond its range."""


# ---------------------------------------------------------------------------- conversions


def alpha_sigma(logsnr: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """α and σ of the variance-preserving process, float32; exactly 0 and 1 at λ = ±inf."""
    logsnr = jnp.asarray(logsnr, jnp.float32)
    return jnp.sqrt(jax.nn.sigmoid(logsnr)), jnp.sqrt(jax.nn.sigmoid(-logsnr))


def expand(coefficient: Float[Array, "..."], ndim: int) -> Float[Array, "..."]:
    """Appends axes of size one to `coefficient` up to `ndim` axes, to multiply a batch."""
    return coefficient.reshape(coefficient.shape + (1,) * (ndim - coefficient.ndim))


def sigma_from_logsnr(logsnr: Float[Array, "..."]) -> Float[Array, "..."]:
    """EDM's σ (noise over signal) = exp(−λ/2)."""
    return jnp.exp(-0.5 * jnp.asarray(logsnr, jnp.float32))


def logsnr_from_sigma(sigma: Float[Array, "..."]) -> Float[Array, "..."]:
    """λ = −2 log σ of EDM's σ; σ = 0 gives +inf."""
    return -2.0 * jnp.log(jnp.asarray(sigma, jnp.float32))


def flow_time(logsnr: Float[Array, "..."]) -> Float[Array, "..."]:
    """Rectified flow's t = σ / (α + σ) = sigmoid(−λ/2)."""
    return jax.nn.sigmoid(-0.5 * jnp.asarray(logsnr, jnp.float32))


def vp_to_ve(z: Float[Array, "b ..."], logsnr: Float[Array, "b"]) -> Float[Array, "b ..."]:
    """z = α x + σ ε to z_ve = x + (σ/α) ε; undefined at λ = −inf."""
    return z / expand(alpha_sigma(logsnr)[0], z.ndim)


def ve_to_vp(z_ve: Float[Array, "b ..."], logsnr: Float[Array, "b"]) -> Float[Array, "b ..."]:
    """z_ve = x + (σ/α) ε to z = α x + σ ε."""
    return z_ve * expand(alpha_sigma(logsnr)[0], z_ve.ndim)


def vp_to_flow(z: Float[Array, "b ..."], logsnr: Float[Array, "b"]) -> Float[Array, "b ..."]:
    """z = α x + σ ε to z_rf = (1−t) x + t ε at the same λ: division by α + σ."""
    alpha, sigma = alpha_sigma(logsnr)
    return z / expand(alpha + sigma, z.ndim)


def flow_to_vp(z_rf: Float[Array, "b ..."], logsnr: Float[Array, "b"]) -> Float[Array, "b ..."]:
    """z_rf = (1−t) x + t ε to z = α x + σ ε at the same λ: multiplication by α + σ."""
    alpha, sigma = alpha_sigma(logsnr)
    return z_rf * expand(alpha + sigma, z_rf.ndim)


def resolution_shift(reference: int, resolution: int) -> float:
    """The shift of λ that keeps the noise on a coarse pixel equal: 2 log(reference/resolution).

    Hoogeboom et al. 2023, simple diffusion: averaging r × r pixels divides the noise by
    r, so a larger image needs a lower λ at the same t for the same destruction.
    """
    return 2.0 * math.log(reference / resolution)


# ------------------------------------------------------------------------------ schedules


def _check_range(name: str, low: float, high: float, low_name: str, high_name: str) -> None:
    if not low < high:
        raise ValueError(f"{name}: {low_name}={low} must be below {high_name}={high}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CosineSchedule:
    """λ = −2 log tan(πt/2) + shift within [logsnr_min, logsnr_max] (Nichol & Dhariwal 2021).

    Clipped the way VDM's authors do (Salimans & Ho 2022): t runs over exactly the piece of the
    cosine whose λ lies within the limits, so that the schedule stays strictly decreasing, ends
    exactly at the limits and has an inverse. At ±20 that moves t by less than 3e-5.
    """

    logsnr_min: float = -20.0
    logsnr_max: float = 20.0
    shift: float = 0.0

    def __post_init__(self):
        _check_range("CosineSchedule", self.logsnr_min, self.logsnr_max, "logsnr_min", "logsnr_max")

    def _angles(self) -> tuple[float, float]:
        """The angles at t = 0 and t = 1, in double precision."""
        start = math.atan(math.exp(-0.5 * (self.logsnr_max - self.shift)))
        end = math.atan(math.exp(-0.5 * (self.logsnr_min - self.shift)))
        return start, end

    def __call__(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        start, end = self._angles()
        t = jnp.asarray(t, jnp.float32)
        angle = start + (end - start) * t
        # tan near π/2 loses half of float32's digits; the sine of the complement does not.
        complement = (0.5 * math.pi - end) + (end - start) * (1.0 - t)
        logsnr = 2.0 * (jnp.log(jnp.sin(complement)) - jnp.log(jnp.sin(angle))) + self.shift
        return jnp.clip(logsnr, self.logsnr_min, self.logsnr_max)

    def inverse(self, logsnr: Float[Array, "..."]) -> Float[Array, "..."]:
        start, end = self._angles()
        angle = jnp.arctan(jnp.exp(-0.5 * (jnp.asarray(logsnr, jnp.float32) - self.shift)))
        return jnp.clip((angle - start) / (end - start), 0.0, 1.0)


_LEAST_ALPHA_SQUARED = 2.0**-24


@functools.lru_cache
def _beta_grid(
    num_timesteps: int, beta_start: float, beta_end: float, power: float, zero_snr: bool
) -> np.ndarray:
    """λ of ᾱ_i = Π (1 − β_i) with β^(1/power) linear; float64 so that 1 − ᾱ_0 keeps its digits."""
    root = np.linspace(beta_start ** (1 / power), beta_end ** (1 / power), num_timesteps)
    log_alphas_cumprod = np.cumsum(np.log1p(-(root**power)))
    if zero_snr:
        alphas = np.exp(0.5 * log_alphas_cumprod)
        alphas = (alphas - alphas[-1]) * alphas[0] / (alphas[0] - alphas[-1])
        log_alphas_cumprod = np.log(np.maximum(alphas**2, _LEAST_ALPHA_SQUARED))
    logsnrs = log_alphas_cumprod - np.log(-np.expm1(log_alphas_cumprod))
    logsnrs.setflags(write=False)
    return logsnrs


@dataclasses.dataclass(frozen=True, kw_only=True)
class _BetaSchedule:
    """A discrete grid of `num_timesteps` noise levels, interpolated linearly in λ between them.

    Attributes:
      num_timesteps: T.
      beta_start, beta_end: the first and the last β.
      zero_snr: whether √ᾱ is shifted and scaled so that the last timestep is pure noise (Lin et al.
        2024, algorithm 1); its ᾱ is 2^-24 here, so that λ is finite.
    """

    num_timesteps: int = 1000
    beta_start: float = 1e-4
    beta_end: float = 0.02
    zero_snr: bool = False
    _POWER: ClassVar[float] = 1.0

    def __post_init__(self):
        name = type(self).__name__
        if self.num_timesteps < 2:
            raise ValueError(f"{name}: num_timesteps={self.num_timesteps} must be at least 2")
        if not 0.0 < self.beta_start <= self.beta_end < 1.0:
            raise ValueError(
                f"{name}: beta_start={self.beta_start}, beta_end={self.beta_end} must satisfy "
                "0 < beta_start <= beta_end < 1"
            )

    def grid(self) -> np.ndarray:
        """`logsnrs` in float64."""
        ends = self.beta_start, self.beta_end
        return _beta_grid(self.num_timesteps, *ends, self._POWER, self.zero_snr)

    @property
    def logsnrs(self) -> Float[Array, "T"]:
        """λ at the timesteps 0 .. num_timesteps − 1, decreasing."""
        return jnp.asarray(self.grid(), jnp.float32)

    def __call__(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        position = jnp.asarray(t, jnp.float32) * (self.num_timesteps - 1)
        return jnp.interp(position, jnp.arange(self.num_timesteps, dtype=jnp.float32), self.logsnrs)

    def timestep(self, logsnr: Float[Array, "..."]) -> Float[Array, "..."]:
        """The timestep in [0, num_timesteps − 1] with `logsnr`, as a float: 12.5 is between two."""
        positions = jnp.arange(self.num_timesteps, dtype=jnp.float32)
        # jnp.interp wants increasing abscissae, and λ decreases with the timestep.
        return jnp.interp(jnp.asarray(logsnr, jnp.float32), self.logsnrs[::-1], positions[::-1])

    def inverse(self, logsnr: Float[Array, "..."]) -> Float[Array, "..."]:
        return self.timestep(logsnr) / (self.num_timesteps - 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearBetaSchedule(_BetaSchedule):
    """DDPM's grid: β linear from beta_start to beta_end (Ho et al. 2020, §4)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaledLinearBetaSchedule(_BetaSchedule):
    """Stable Diffusion's grid: √β linear from √beta_start to √beta_end."""

    beta_start: float = 0.00085
    beta_end: float = 0.012
    _POWER: ClassVar[float] = 2.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class EDMSchedule:
    """EDM's sampling grid: σ^(1/ρ) linear from sigma_min to sigma_max (Karras et al. 2022, eq. 5).

    `samplers.logsnr_grid(schedule, steps, end="append")` is eq. 5 with its last σ = 0. To train
    with EDM's own distribution of σ use `LogNormal`.
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self):
        _check_range("EDMSchedule", self.sigma_min, self.sigma_max, "sigma_min", "sigma_max")
        if self.sigma_min <= 0.0 or self.rho <= 0.0:
            raise ValueError(
                f"EDMSchedule: sigma_min={self.sigma_min} and rho={self.rho} must be positive"
            )

    def __call__(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        t = jnp.asarray(t, jnp.float32)
        return -2.0 * self.rho * jnp.log(low + t * (high - low))

    def inverse(self, logsnr: Float[Array, "..."]) -> Float[Array, "..."]:
        low, high = self.sigma_min ** (1 / self.rho), self.sigma_max ** (1 / self.rho)
        root = jnp.exp(-0.5 / self.rho * jnp.asarray(logsnr, jnp.float32))
        return jnp.clip((root - low) / (high - low), 0.0, 1.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LogNormal:
    """Training noise levels with log σ ~ N(P_mean, P_std²) (Karras et al. 2022, table 1).

    As a schedule it is the quantile function, λ = −2 (P_mean + P_std Φ⁻¹(t)), so uniform times
    have the wanted distribution and low-discrepancy times cover it evenly. Rectified flow's
    logit-normal t (Esser et al. 2024, eq. 19) is the same family, since λ = −2 logit(t).
    """

    P_mean: float = -1.2
    P_std: float = 1.2
    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def __post_init__(self):
        _check_range("LogNormal", self.logsnr_min, self.logsnr_max, "logsnr_min", "logsnr_max")
        if self.P_std <= 0.0:
            raise ValueError(f"LogNormal: P_std={self.P_std} must be positive")

    def __call__(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        quantile = jax.scipy.special.ndtri(jnp.asarray(t, jnp.float32))
        logsnr = -2.0 * (self.P_mean + self.P_std * quantile)
        return jnp.clip(logsnr, self.logsnr_min, self.logsnr_max)

    def inverse(self, logsnr: Float[Array, "..."]) -> Float[Array, "..."]:
        log_sigma = -0.5 * jnp.asarray(logsnr, jnp.float32)
        return jax.scipy.special.ndtr((log_sigma - self.P_mean) / self.P_std)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RectifiedFlowSchedule:
    """Rectified flow, λ = 2 log((1−t)/t), shifted in time and clipped (Liu et al. 2022).

    `shift` is the resolution shift α of t' = αt / (1 + (α−1)t) (Esser et al. 2024, eq. 23), which
    is −2 log α on λ. The clip keeps both ends finite; it acts within 5e-5 of t = 0 and 1.
    """

    shift: float = 1.0
    logsnr_min: float = -20.0
    logsnr_max: float = 20.0

    def __post_init__(self):
        name = "RectifiedFlowSchedule"
        _check_range(name, self.logsnr_min, self.logsnr_max, "logsnr_min", "logsnr_max")
        if self.shift <= 0.0:
            raise ValueError(f"{name}: shift={self.shift} must be positive")

    def __call__(self, t: Float[Array, "..."]) -> Float[Array, "..."]:
        t = jnp.asarray(t, jnp.float32)
        logsnr = 2.0 * (jnp.log1p(-t) - jnp.log(t) - math.log(self.shift))
        return jnp.clip(logsnr, self.logsnr_min, self.logsnr_max)

    def inverse(self, logsnr: Float[Array, "..."]) -> Float[Array, "..."]:
        return flow_time(jnp.asarray(logsnr, jnp.float32) + 2.0 * math.log(self.shift))


SCHEDULES: Mapping[str, type] = {
    "cosine": CosineSchedule,
    "linear_beta": LinearBetaSchedule,
    "scaled_linear_beta": ScaledLinearBetaSchedule,
    "edm": EDMSchedule,
    "log_normal": LogNormal,
    "rectified_flow": RectifiedFlowSchedule,
}


def make_schedule(name: str, **kwargs) -> Schedule:
    """The schedule called `name` in `SCHEDULES`, with its fields from `kwargs`.

    Raises:
      ValueError: unknown name, unknown field, or a field's value out of its range.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule={name!r} is unknown; allowed: {', '.join(SCHEDULES)}")
    fields = [field.name for field in dataclasses.fields(SCHEDULES[name])]
    unknown = sorted(set(kwargs) - set(fields))
    if unknown:
        raise ValueError(
            f"schedule {name!r} has no field {', '.join(unknown)}; allowed: {', '.join(fields)}"
        )
    return SCHEDULES[name](**kwargs)
