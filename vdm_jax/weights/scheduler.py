"""Published noise schedules and samplers: `scheduler_config.json` of a diffusers folder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm_jax.diffusion import samplers, schedules, solvers
from vdm_jax.diffusion.grids import Explicit
from vdm_jax.diffusion.plms import PLMS
from vdm_jax.models.latent_unet import NoiseTime, Timestep
from vdm_jax.weights import published

FILE = "scheduler_config.json"
SPACINGS = ("leading", "trailing", "linspace")
_PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}
_SCHEDULES = {
    "linear": schedules.LinearBetaSchedule,
    "scaled_linear": schedules.ScaledLinearBetaSchedule,
}
_RHO = 7.0  # of Karras et al. 2022, as in the published code


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheduler:
    """A published scheduler.

    Attributes:
      kind: "ddim", "plms", "euler" or "dpmpp_2m".
      schedule: of the noise.
      prediction: what the network predicts: "eps", "v" or "x".
      spacing: of the timesteps, one of `SPACINGS` (Lin et al. 2024, table 2).
      offset: added to the timesteps of "leading".
      karras: whether the noise levels are spaced as in Karras et al. 2022, eq. 5.
      sigma_min, sigma_max: the range of "karras" in EDM's σ; None = that of the timesteps.
      ends_clean: whether the last step of "ddim" and "plms" returns x̂. Otherwise it returns z at
        timestep 0.
      clips: whether x̂ is clipped to [-1, 1].
      continuous: whether the network takes log σ / 4 in the place of a timestep.
      ancestral: whether the steps of "euler" add noise.
    """

    kind: str = "ddim"
    schedule: schedules.Schedule
    prediction: str = "eps"
    spacing: str = "leading"
    offset: int = 0
    karras: bool = False
    sigma_min: float | None = None
    sigma_max: float | None = None
    ends_clean: bool = True
    clips: bool = False
    continuous: bool = False
    ancestral: bool = False

    @property
    def time(self) -> Timestep | NoiseTime:
        """What the network takes as its time, a function of the log-SNR."""
        if self.continuous:
            return NoiseTime()
        # The published multistep solver gives the network whole timesteps, also between two.
        return Timestep(schedule=self.schedule, rounded=self.kind == "dpmpp_2m")

    def sampling(self, steps: int) -> dict[str, Any]:
        """`rule`, `grid` and `noise` of `stage.sampler.Sampler` for `steps` steps; without `noise`
        its deviation is 1.

        It is another where the published code leaves out the signal's share of the variance.
        Raises ValueError.
        """
        total = self.schedule.num_timesteps
        if not 1 <= steps <= total:
            raise ValueError(f"steps = {steps}: must be between 1 and {total}")
        timesteps = self._timesteps(steps)
        if self.kind in ("ddim", "plms"):
            return self._discrete(steps, timesteps)
        sigmas = self._sigmas()
        levels = np.interp(timesteps, np.arange(total), sigmas)
        if self.karras:
            whole = self.kind == "dpmpp_2m"  # of the schedule, and not of the timesteps alone
            most, least = (sigmas[-1], sigmas[0]) if whole else (levels[0], levels[-1])
            most = most if self.sigma_max is None else self.sigma_max
            least = least if self.sigma_min is None else self.sigma_min
            ramp = np.linspace(0, 1, steps)
            ends = most ** (1 / _RHO), least ** (1 / _RHO)
            levels = (ends[0] + ramp * (ends[1] - ends[0])) ** _RHO
        grid = Explicit(levels=(*(-2 * np.log(levels)), np.inf))
        if self.kind == "dpmpp_2m":
            return {"rule": solvers.DPMPP2M(), "grid": grid}
        # Noise of deviation σ, and not √(σ² + 1) with the data's, for these two spacings.
        largest = float(levels.max())
        start = 1.0 if self.spacing == "leading" else largest / np.sqrt(largest**2 + 1)
        # In EDM's σ, DDIM with η = 1 is Euler's step to a lower σ, and noise that makes up for it.
        rule = samplers.DDIM(eta=1.0) if self.ancestral else solvers.Euler()
        return {"rule": rule, "grid": grid, "noise": samplers.FirstNoise(scale=float(start))}

    def _discrete(self, steps: int, timesteps: np.ndarray) -> dict[str, Any]:
        stride = self.schedule.num_timesteps // steps
        targets = timesteps - stride
        end = float(np.inf if self.ends_clean else self._logsnr(np.zeros(1))[0])
        grid = Explicit(levels=(*self._logsnr(timesteps), end))
        equal = np.array_equal(targets[:-1], timesteps[1:]) and targets[-1] < 0
        strides = Strides(schedule=self.schedule, stride=stride, end=end)
        if self.kind == "plms" and steps > 1:  # one step of PLMS is DDIM's
            kind = self.prediction
            rule = PLMS(prediction=kind) if equal else StridedPLMS(prediction=kind, strides=strides)
        else:
            rule = samplers.DDIM() if equal else StridedDDIM(strides=strides)
        return {"rule": rule, "grid": grid}

    def _timesteps(self, steps: int) -> np.ndarray:
        """Of each step, float64, decreasing."""
        total, multistep = self.schedule.num_timesteps, self.kind == "dpmpp_2m"
        # The published multistep solver counts its end as one more point.
        points = steps + multistep
        if self.spacing == "leading":
            found = (np.arange(points) * (total // points))[::-1].astype(np.float64)
            return found[:steps] + self.offset
        if self.spacing == "trailing":
            return np.round(np.arange(total, 0, -total / steps)) - 1
        found = np.linspace(0, total - 1, points)[::-1][:steps]
        return found if self.kind == "euler" else np.round(found)

    def _logsnr(self, timesteps: np.ndarray) -> np.ndarray:
        """Of whole timesteps."""
        found = self.schedule.grid()[timesteps.astype(int)].copy()
        if self.schedule.zero_snr:
            found[timesteps == self.schedule.num_timesteps - 1] = -np.inf
        return found

    def _sigmas(self) -> np.ndarray:
        """EDM's σ of all timesteps, increasing."""
        return np.exp(-0.5 * self.schedule.grid())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Strides:
    """Steps of always the same number of timesteps, wherever the next step begins.

    Published code steps so for timesteps that are not equally spaced.

    Attributes:
      schedule: of discrete timesteps.
      stride: the number of timesteps.
      end: λ of what a step beyond timestep 0 returns.
    """

    schedule: schedules.Schedule
    stride: int
    end: float

    def down(self, logsnr: Float[Array, ""]) -> Float[Array, ""]:
        """λ a step below a timestep."""
        target = self.schedule.timestep(logsnr).round() - self.stride
        return jnp.where(target < 0, self.end, self._level(target))

    def up(self, logsnr: Float[Array, ""]) -> Float[Array, ""]:
        """λ a step above a timestep."""
        return self._level(self.schedule.timestep(logsnr).round() + self.stride)

    def _level(self, timestep: Float[Array, ""]) -> Float[Array, ""]:
        return self.schedule(timestep / (self.schedule.num_timesteps - 1))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StridedDDIM(samplers.DDIM):
    """DDIM by `strides`. `logsnr_s` of its steps, where the next step begins, is not used."""

    strides: Strides

    def step(self, key, denoise, z, state, logsnr_t, logsnr_s):
        """See `solvers.Rule`."""
        return super().step(key, denoise, z, state, logsnr_t, self.strides.down(logsnr_t))


@dataclasses.dataclass(frozen=True, kw_only=True)
class StridedPLMS(PLMS):
    """PLMS by `strides`."""

    strides: Strides

    def reached(self, logsnr_t, logsnr_s):
        """See `PLMS`."""
        return self.strides.down(logsnr_t)

    def begun(self, logsnr_t, logsnr_s):
        """See `PLMS`."""
        return self.strides.up(logsnr_s)


def read_folder(folder: str | Path) -> Scheduler:
    """The scheduler in a folder. Raises FileNotFoundError; ValueError naming what is not known."""
    path = Path(folder).expanduser() / FILE
    return from_config(published.read_json(path), path)


def from_config(config: Mapping[str, Any], path: Path) -> Scheduler:
    """The scheduler that a `scheduler_config.json`, read from `path`, describes.

    Raises ValueError naming the value that is not known.
    """
    name = published.config_value(config, path, "_class_name", _READERS)
    known = {"_class_name", "_diffusers_version", *_IGNORED, *_COMMON, *_FIXED[name]}
    known |= _READ[name].keys()
    if unknown := sorted(set(config) - known):
        raise ValueError(f"{path}: {', '.join(unknown)}: not known for {name}")

    def value(field: str, default: Any, allowed: Any = None) -> Any:
        return published.config_value({field: default, **config}, path, field, allowed)

    for field, only in _FIXED[name].items():
        value(field, only, [only])
    if name == _PNDM:  # without it the published code runs Runge and Kutta's steps first
        published.config_value(config, path, "skip_prk_steps", [True])
    if config.get("trained_betas") is not None:
        raise ValueError(f"{path}: trained_betas: allowed is null")
    read = {field: value(field, default) for field, default in _READ[name].items()}
    schedule = _SCHEDULES[value("beta_schedule", "linear", _SCHEDULES)](
        num_timesteps=value("num_train_timesteps", 1000),
        beta_start=value("beta_start", 1e-4),
        beta_end=value("beta_end", 0.02),
        zero_snr=value("rescale_betas_zero_snr", False, [True, False]),
    )
    continuous = read.get("timestep_type", "discrete") == "continuous"
    predictions = [kind for kind in _PREDICTIONS if kind != "sample" or name != _PNDM]
    prediction = _PREDICTIONS[value("prediction_type", "epsilon", predictions)]
    if continuous and prediction != "v":
        raise ValueError(f"{path}: timestep_type = 'continuous': allowed with v_prediction only")
    return Scheduler(
        kind=_READERS[name],
        schedule=schedule,
        prediction=prediction,
        spacing=value("timestep_spacing", _SPACING[name], SPACINGS),
        offset=value("steps_offset", 0),
        karras=bool(read.get("use_karras_sigmas", False)),
        sigma_min=read.get("sigma_min"),
        sigma_max=read.get("sigma_max"),
        ends_clean=bool(read.get("set_alpha_to_one", True)),
        clips=bool(read.get("clip_sample", False)),
        continuous=continuous,
        ancestral=name == _ANCESTRAL,
    )


_ANCESTRAL, _PNDM = "EulerAncestralDiscreteScheduler", "PNDMScheduler"
_READERS = {
    "DDIMScheduler": "ddim",
    _PNDM: "plms",
    "EulerDiscreteScheduler": "euler",
    _ANCESTRAL: "euler",
    "DPMSolverMultistepScheduler": "dpmpp_2m",
}
_SPACING = {
    "DDIMScheduler": "leading",
    _PNDM: "leading",
    "EulerDiscreteScheduler": "linspace",
    _ANCESTRAL: "linspace",
    "DPMSolverMultistepScheduler": "linspace",
}
_COMMON = (
    "beta_start",
    "beta_end",
    "beta_schedule",
    "num_train_timesteps",
    "prediction_type",
    "rescale_betas_zero_snr",
    "steps_offset",
    "timestep_spacing",
    "trained_betas",
)
# What is read beside `_COMMON`, with the default of the class.
_READ = {
    "DDIMScheduler": {"set_alpha_to_one": True, "clip_sample": True},
    _PNDM: {"set_alpha_to_one": False},
    "EulerDiscreteScheduler": {
        "use_karras_sigmas": False,
        "sigma_min": None,
        "sigma_max": None,
        "timestep_type": "discrete",
    },
    _ANCESTRAL: {},
    "DPMSolverMultistepScheduler": {"use_karras_sigmas": False},
}
# What must have one value.
_FIXED = {
    "DDIMScheduler": {"thresholding": False, "clip_sample_range": 1.0},
    _PNDM: {},
    "EulerDiscreteScheduler": {
        "interpolation_type": "linear",
        "final_sigmas_type": "zero",
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
    },
    _ANCESTRAL: {},
    "DPMSolverMultistepScheduler": {
        "algorithm_type": "dpmsolver++",
        "solver_order": 2,
        "solver_type": "midpoint",
        "thresholding": False,
        "final_sigmas_type": "zero",
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_lu_lambdas": False,
        "use_flow_sigmas": False,
        "variance_type": None,
        "lambda_min_clipped": -np.inf,
    },
}
# Of settings that are off, or of variance that no deterministic rule adds.
_IGNORED = (
    "dynamic_thresholding_ratio",
    "sample_max_value",
    "lower_order_final",
    "euler_at_final",
    "flow_shift",
    "use_dynamic_shifting",
    "time_shift_type",
    "clip_sample",
    "set_alpha_to_one",
    "skip_prk_steps",
)
