"""Published samplers of rectified flow: `scheduler_config.json` of a diffusers folder."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vdm_jax.diffusion import solvers
from vdm_jax.diffusion.grids import Explicit
from vdm_jax.diffusion.schedules import RectifiedFlowSchedule
from vdm_jax.diffusion.unipc import UniPC
from vdm_jax.models.video_transformer import FlowTime
from vdm_jax.weights import published
from vdm_jax.weights.scheduler import FILE

_UNIPC, _EULER = "UniPCMultistepScheduler", "FlowMatchEulerDiscreteScheduler"
# Where a fraction of a timestep is cut off, times stay so far from whole timesteps: float32 has
# them no more exactly.
_MARGIN = 5e-4
_FIRST = 1e-6  # the published multistep solver begins so much below t = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlowScheduler:
    """A published sampler of rectified flow.

    Attributes:
      kind: "unipc" or "flow_euler".
      num_timesteps: of t = 1.
      shift: the resolution shift α of t' = αt / (1 + (α - 1) t) (Esser et al. 2024, eq. 23).
      order, variant: of "unipc", see `UniPC`.
    """

    kind: str = "unipc"
    num_timesteps: int = 1000
    shift: float = 1.0
    order: int = 2
    variant: str = "bh2"

    @property
    def schedule(self) -> RectifiedFlowSchedule:
        """Of the noise."""
        return RectifiedFlowSchedule(shift=self.shift)

    @property
    def time(self) -> FlowTime:
        """What the network takes as its time, a function of the log-SNR."""
        return FlowTime(num_timesteps=self.num_timesteps, whole=self.kind == "unipc")

    def times(self, steps: int) -> np.ndarray:
        """Rectified flow's t of each step, float64, decreasing."""
        total = self.num_timesteps
        if self.kind == "unipc":
            times = self._shifted(np.linspace(1, 1 / total, steps + 1)[:-1])
            return np.minimum(times, 1 - _FIRST)
        # The published Euler method shifts both ends first, then all of what is between them.
        return self._shifted(np.linspace(1, self._shifted(np.asarray(1 / total)), steps))

    def sampling(self, steps: int) -> dict[str, Any]:
        """`rule` and `grid` of `stage.sampler.Sampler` for `steps` steps. Raises
        ValueError."""
        if not 1 <= steps <= self.num_timesteps:
            raise ValueError(f"steps = {steps}: must be between 1 and {self.num_timesteps}")
        times, rule = self.times(steps), solvers.FlowEuler()
        if self.kind == "unipc":
            rule = UniPC(order=self.order, variant=self.variant)
            timesteps = times * self.num_timesteps
            whole = np.floor(timesteps)
            times = np.clip(timesteps, whole + _MARGIN, whole + 1 - _MARGIN) / self.num_timesteps
        with np.errstate(divide="ignore"):  # t = 1 is -inf
            levels = 2 * (np.log1p(-times) - np.log(times))
        return {"rule": rule, "grid": Explicit(levels=(*levels, np.inf))}

    def _shifted(self, times: np.ndarray) -> np.ndarray:
        return self.shift * times / (1 + (self.shift - 1) * times)


def read_folder(folder: str | Path) -> FlowScheduler:
    """The sampler in a folder. Raises FileNotFoundError; ValueError naming what is not known."""
    path = Path(folder).expanduser() / FILE
    return from_config(published.read_json(path), path)


def from_config(config: Mapping[str, Any], path: Path) -> FlowScheduler:
    """The sampler that a `scheduler_config.json`, read from `path`, describes.

    Raises ValueError naming the value that is not known.
    """
    name = published.config_value(config, path, "_class_name", _FIXED)
    known = {*_FIXED[name], *_READ[name], *_IGNORED[name]}
    if unknown := sorted(key for key in config if key not in known and not key.startswith("_")):
        raise ValueError(f"{path}: {', '.join(unknown)}: not known for {name}")

    def value(field: str, default: Any, allowed: Any = None) -> Any:
        return published.config_value({field: default, **config}, path, field, allowed)

    for field, only in _FIXED[name].items():
        value(field, _DEFAULTS.get(field, only), [only])
    total = value("num_train_timesteps", 1000)
    if name == _EULER:
        return FlowScheduler(kind="flow_euler", num_timesteps=total, shift=value("shift", 1.0))
    return FlowScheduler(
        num_timesteps=total,
        shift=value("flow_shift", 1.0),
        order=value("solver_order", 2, [1, 2]),
        variant=value("solver_type", "bh2", ["bh1", "bh2"]),
    )


_READ = {
    _UNIPC: ("num_train_timesteps", "flow_shift", "solver_order", "solver_type"),
    _EULER: ("num_train_timesteps", "shift"),
}
# What must have one value.
_FIXED: Mapping[str, Mapping[str, Any]] = {
    _UNIPC: {
        "prediction_type": "flow_prediction",
        "use_flow_sigmas": True,
        "predict_x0": True,
        "lower_order_final": True,
        "disable_corrector": [],
        "solver_p": None,
        "thresholding": False,
        "final_sigmas_type": "zero",
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "use_dynamic_shifting": False,
        "shift_terminal": None,
    },
    _EULER: {
        "use_dynamic_shifting": False,
        "shift_terminal": None,
        "invert_sigmas": False,
        "use_karras_sigmas": False,
        "use_exponential_sigmas": False,
        "use_beta_sigmas": False,
        "stochastic_sampling": False,
    },
}
# The class's default, where that is not what is allowed.
_DEFAULTS = {"prediction_type": "epsilon", "use_flow_sigmas": False}
# Of the discrete grid of timesteps, and of settings that are off.
_IGNORED = {
    _UNIPC: (
        "beta_start",
        "beta_end",
        "beta_schedule",
        "trained_betas",
        "timestep_spacing",
        "steps_offset",
        "rescale_betas_zero_snr",
        "dynamic_thresholding_ratio",
        "sample_max_value",
        "time_shift_type",
        "sigma_min",
        "sigma_max",
    ),
    _EULER: (
        "base_shift",
        "max_shift",
        "base_image_seq_len",
        "max_image_seq_len",
        "time_shift_type",
    ),
}
