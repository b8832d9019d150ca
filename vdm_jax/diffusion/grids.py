"""Time grids: the increasing log-SNRs λ that a sampler steps through.

A grid ends at λ = +inf, where z is the clean data, or at the schedule's own least noise.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm_jax.diffusion.schedules import Schedule, logsnr_from_sigma, sigma_from_logsnr

SPACINGS = ("time", "logsnr", "karras", "trailing", "leading")
ENDS = ("clean", "append", "schedule")


def logsnr_grid(
    schedule: Schedule,
    steps: int,
    end: str | None = None,
    spacing: str = "time",
    *,
    rho: float = 7.0,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
) -> Float[Array, "{steps}+1"]:
    """The `steps` + 1 increasing log-SNRs of a sampler.

    Args:
      schedule: the noise schedule.
      steps: number of steps, at least 1.
      end: "clean": the first `steps` of `steps` + 1 points, then +inf in place of the last, so that
        the last step returns x̂. "append": `steps` points over the whole range, then +inf (EDM's
        eq. 5). "schedule": `steps` + 1 points over the whole range; what is returned keeps the
        noise of the last. None: "clean" for "time", "append" for "logsnr" and "karras"; "trailing"
        and "leading" know no other end than their own, which is +inf.
      spacing: what is uniform, from the most noise to the least:
        "time": the schedule's t, from 1 to 0.
        "logsnr": λ (Lu et al. 2022, DPM-Solver, §4).
        "karras": σ^(1/ρ) of EDM's σ = e^{−λ/2} (Karras et al. 2022, eq. 5).
        "trailing": the timesteps round(k T/steps) − 1, k = steps … 1, of a schedule of T timesteps
        (Lin et al. 2024, table 2); of a continuous one t = k/steps, which is "time".
        "leading": the timesteps k ⌊T/steps⌋, k = steps − 1 … 0 (the same table, DDIM's own choice);
        of a continuous one t = k/steps. It begins below the most noise, so pure noise is not
        quite what the model expects there.
      rho: ρ of "karras".
      sigma_min, sigma_max: the range of "logsnr" and "karras" in EDM's σ, cut to the schedule's.

    Raises:
      ValueError: an argument that is not allowed.
    """
    if steps < 1:
        raise ValueError(f"logsnr_grid: steps={steps} must be at least 1")
    if spacing not in SPACINGS:
        raise ValueError(
            f"logsnr_grid: spacing={spacing!r} is unknown; allowed: {', '.join(SPACINGS)}"
        )
    if end is not None and end not in ENDS:
        raise ValueError(f"logsnr_grid: end={end!r} is unknown; allowed: {', '.join(ENDS)}")
    if spacing in ("trailing", "leading"):
        if end not in (None, "clean"):
            raise ValueError(f"logsnr_grid: spacing={spacing!r} ends at +inf; end={end!r} does not")
        return jnp.append(schedule(_discrete_times(schedule, steps, spacing)), jnp.inf)

    end = end or ("clean" if spacing == "time" else "append")
    times = jnp.linspace(1.0, 0.0, steps if end == "append" else steps + 1)
    if spacing == "time":
        logsnrs = schedule(times)
    else:
        check_sigmas(sigma_min, sigma_max, rho)
        # The range first: what is beyond the schedule's, the model has never seen.
        low, high = schedule(jnp.float32(1.0)), schedule(jnp.float32(0.0))
        low = jnp.clip(logsnr_from_sigma(jnp.float32(sigma_max)), low, high)
        high = jnp.clip(logsnr_from_sigma(jnp.float32(sigma_min)), low, high)
        if spacing == "logsnr":
            logsnrs = high + times * (low - high)
        else:
            most, least = sigma_from_logsnr(low) ** (1 / rho), sigma_from_logsnr(high) ** (1 / rho)
            logsnrs = -2.0 * rho * jnp.log(least + times * (most - least))
    if end == "append":
        return jnp.append(logsnrs, jnp.inf)
    return logsnrs.at[-1].set(jnp.inf) if end == "clean" else logsnrs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Spaced:
    """A grid of a schedule, see `logsnr_grid`: its fields are that function's arguments.

    rho is for the spacing "karras", sigma_min and sigma_max for "karras" and "logsnr".
    """

    steps: int = 64
    spacing: str = "time"
    rho: float = 7.0
    sigma_min: float = 0.002
    sigma_max: float = 80.0

    def __post_init__(self):
        if self.steps < 1:
            raise ValueError(f"steps = {self.steps}: must be at least 1")
        if self.spacing not in SPACINGS:
            raise ValueError(f"grid={self.spacing!r} is unknown; allowed: {', '.join(SPACINGS)}")
        check_sigmas(self.sigma_min, self.sigma_max, self.rho)

    def logsnrs(self, schedule: Schedule) -> Float[Array, "steps_plus_1"]:
        """The increasing log-SNRs."""
        return logsnr_grid(
            schedule,
            self.steps,
            spacing=self.spacing,
            rho=self.rho,
            sigma_min=self.sigma_min,
            sigma_max=self.sigma_max,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Explicit:
    """A grid of given log-SNRs, two or more, that never decrease."""

    levels: tuple[float, ...]

    def __post_init__(self):
        object.__setattr__(self, "levels", parse_grid(self.levels))

    @property
    def steps(self) -> int:
        return len(self.levels) - 1

    def logsnrs(self, schedule: Schedule) -> Float[Array, "steps_plus_1"]:
        """The log-SNRs."""
        return jnp.asarray(self.levels, jnp.float32)


# Which fields of `Spaced` act with which spacing.
_SPACING_FIELDS = {
    "karras": ("rho", "sigma_min", "sigma_max"),
    "logsnr": ("sigma_min", "sigma_max"),
}


def make_grid(grid: str | Sequence[float | int], steps: int, **fields: Any) -> Spaced | Explicit:
    """A grid by the name of its spacing, or of log-SNRs, also as text such as "-8,-2,0,2,inf".

    fields: rho, sigma_min, sigma_max. Raises ValueError for a field that the grid does not have.
    """
    parsed = parse_grid(grid)
    allowed = _SPACING_FIELDS.get(parsed, ()) if isinstance(parsed, str) else ()
    if unknown := sorted(set(fields) - set(allowed)):
        raise ValueError(
            f"grid {grid!r} has no field {', '.join(unknown)}; allowed: "
            f"{', '.join(allowed) or 'none'}"
        )
    if isinstance(parsed, str):
        return Spaced(steps=steps, spacing=parsed, **fields)
    return Explicit(levels=parsed)


def _discrete_times(schedule: Schedule, steps: int, spacing: str) -> Float[Array, "{steps}"]:
    """t of the timesteps of "trailing" and "leading", decreasing."""
    total = getattr(schedule, "num_timesteps", None)
    if total is None:
        first = steps if spacing == "trailing" else steps - 1
        return jnp.arange(first, first - steps, -1, dtype=jnp.float32) / steps
    if steps > total:
        raise ValueError(
            f"logsnr_grid: steps={steps} must be at most the schedule's {total} timesteps"
        )
    counts = np.arange(steps, 0, -1)
    if spacing == "trailing":
        timesteps = np.round(counts * total / steps) - 1
    else:
        timesteps = (counts - 1) * (total // steps)
    return jnp.asarray(timesteps / (total - 1), jnp.float32)


def check_sigmas(sigma_min: float, sigma_max: float, rho: float) -> None:
    """Raises ValueError unless 0 < sigma_min < sigma_max and rho > 0."""
    if not 0.0 < sigma_min < sigma_max:
        raise ValueError(
            f"sigma_min={sigma_min}, sigma_max={sigma_max} must satisfy 0 < sigma_min < sigma_max"
        )
    if not rho > 0.0:
        raise ValueError(f"rho={rho} must be positive")


def parse_grid(grid: str | Sequence[float | int] | np.ndarray) -> str | tuple[float, ...]:
    """A spacing by its name, or log-SNRs of one's own, also as text such as "-8,-2,0,2,inf".

    Raises:
      ValueError: neither a name of `SPACINGS`, nor two numbers or more that never decrease.
    """
    allowed = (
        f"allowed: {', '.join(SPACINGS)}, or increasing log-SNRs such as -8,-2,0,2,inf "
        "(-inf is pure noise, inf clean data)"
    )
    if isinstance(grid, str):
        if grid in SPACINGS:
            return grid
        try:
            values = tuple(float(word) for word in grid.split(","))
        except ValueError:
            raise ValueError(f"grid={grid!r} is unknown; {allowed}") from None
    else:
        array = np.asarray(grid, np.float64)
        if array.ndim != 1:
            raise ValueError(f"grid has shape {array.shape}; {allowed}")
        values = tuple(array.tolist())
    if len(values) < 2:
        raise ValueError(f"grid={grid!r} must have two log-SNRs or more; {allowed}")
    for before, after in zip(values, values[1:], strict=False):
        if not before <= after:  # nor with NaN
            raise ValueError(f"grid: {before:g}, {after:g} must increase; {allowed}")
    if values[0] == values[-1]:
        raise ValueError(f"grid={grid!r} goes nowhere; {allowed}")
    return values
