"""The diffusion process of one model: schedule, prediction and loss in one value.

It turns a raw network into a loss for training and into a Denoiser for sampling. A Denoiser is
`(z [b, ...], logsnr [b], cond) -> Prediction`; guidance maps Denoisers to Denoisers.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm_jax.diffusion import losses, schedules
from vdm_jax.diffusion.predictions import Prediction, check_kind, to_prediction
from vdm_jax.diffusion.schedules import Schedule, alpha_sigma, expand

Denoiser = Callable[[Array, Array, Any], Prediction]


class Noised(NamedTuple):
    """Examples with noise: z = α x + σ ε."""

    x: Float[Array, "b ..."]
    eps: Float[Array, "b ..."]
    logsnr: Float[Array, "b"]
    z: Float[Array, "b ..."]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Process:
    """How data is noised, what the network predicts and how its error is weighed.

    Attributes:
      schedule: the noise levels of sampling, and of training unless `training_schedule` is given.
      prediction: what the network outputs, one of `predictions.KINDS`.
      loss_name: one of `losses.LOSSES`.
      training_schedule: distribution of the noise levels in training (at uniform times).
      min_snr_gamma: γ of the loss of that name.
      sigma_data: the data's standard deviation in the loss "edm".
    """

    schedule: Schedule = schedules.CosineSchedule()
    prediction: str = "v"
    loss_name: str = "v_mse"
    training_schedule: Schedule | None = None
    min_snr_gamma: float = 5.0
    sigma_data: float = 0.5

    def __post_init__(self):
        check_kind(self.prediction)
        self._loss()

    def _loss(self) -> losses.Loss:
        return losses.make_loss(
            self.loss_name, gamma=self.min_snr_gamma, sigma_data=self.sigma_data
        )

    def sample_logsnr(self, key: Key[Array, ""], n: int) -> Float[Array, "{n}"]:
        """n training noise levels at low-discrepancy times."""
        schedule = self.schedule if self.training_schedule is None else self.training_schedule
        return schedule(losses.low_discrepancy_times(key, n))

    def add_noise(
        self,
        x: Float[Array, "b ..."],
        eps: Float[Array, "b ..."],
        logsnr: Float[Array, "b"],
    ) -> Float[Array, "b ..."]:
        """z = α x + σ ε, float32."""
        alpha, sigma = (expand(c, x.ndim) for c in alpha_sigma(logsnr))
        return alpha * x.astype(jnp.float32) + sigma * eps.astype(jnp.float32)

    def loss(
        self,
        key: Key[Array, ""],
        network_fn: Callable[[Array, Array], Array],
        x: Float[Array, "b ..."],
        weight_fn: Callable[[Array], Array] | None = None,
    ) -> tuple[Float[Array, "b"], dict[str, Float[Array, ""]]]:
        """Loss of each example at a noise level and a noise drawn from `key`.

        Args:
          key: where the noise levels and the noise come from.
          network_fn: `(z [b, ...], logsnr [b]) -> raw output [b, ...]`.
          x: clean data, floating point.
          weight_fn: `logsnr [b] -> weight` of the squared errors, [b] or with further axes of x
            ([b, f]); None = 1.

        Returns:
          The losses, and scalar metrics: the unweighted `x_mse` and `eps_mse`.
        """
        noised = self.noised(key, x)
        return self.losses(network_fn(noised.z, noised.logsnr), noised, weight_fn)

    def noised(self, key: Key[Array, ""], x: Float[Array, "b ..."]) -> Noised:
        """Each example at a noise level and with a noise drawn from `key`."""
        logsnr_key, eps_key = jax.random.split(key)
        x = x.astype(jnp.float32)
        logsnr = self.sample_logsnr(logsnr_key, x.shape[0])
        eps = jax.random.normal(eps_key, x.shape, jnp.float32)
        return Noised(x, eps, logsnr, self.add_noise(x, eps, logsnr))

    def losses(
        self,
        output: Float[Array, "b ..."],
        noised: Noised,
        weight_fn: Callable[[Array], Array] | None = None,
    ) -> tuple[Float[Array, "b"], dict[str, Float[Array, ""]]]:
        """What `loss` returns, from the network's raw output."""
        x, eps, logsnr, z = noised
        prediction = to_prediction(self.prediction, output, z, logsnr)
        metrics = {
            "x_mse": jnp.mean(losses.x_mse(prediction, x, eps, logsnr)),
            "eps_mse": jnp.mean(losses.eps_mse(prediction, x, eps, logsnr)),
        }
        if weight_fn is not None:
            # Every loss is a square of what is linear in x and ε: √w times those, w times that.
            root = expand(jnp.sqrt(weight_fn(logsnr)), x.ndim)
            x, eps = root * x, root * eps
            prediction = dataclasses.replace(
                prediction, x=root * prediction.x, eps=root * prediction.eps
            )
        return self._loss()(prediction, x, eps, logsnr), metrics

    def denoiser(self, network_fn: Callable[[Array, Array, Any], Array]) -> Denoiser:
        """A raw network `(z, logsnr, cond) -> output` as a Denoiser."""

        def denoise(z: Float[Array, "b ..."], logsnr: Float[Array, "b"], cond: Any) -> Prediction:
            return to_prediction(self.prediction, network_fn(z, logsnr, cond), z, logsnr)

        return denoise


# Fields of a process configuration: the schedule's name chooses which of them it takes. A field
# that the chosen schedule does not take must have its default (configurations list them all).
_SCHEDULE_FIELDS: Mapping[str, Mapping[str, str]] = {
    "cosine": {
        "logsnr_min": "logsnr_min",
        "logsnr_max": "logsnr_max",
        "logsnr_shift": "shift",
    },
    "linear_beta": {
        "num_timesteps": "num_timesteps",
        "beta_start": "beta_start",
        "beta_end": "beta_end",
        "zero_snr": "zero_snr",
    },
    "scaled_linear_beta": {
        "num_timesteps": "num_timesteps",
        "beta_start": "beta_start",
        "beta_end": "beta_end",
        "zero_snr": "zero_snr",
    },
    "edm": {"sigma_min": "sigma_min", "sigma_max": "sigma_max", "rho": "rho"},
    "rectified_flow": {
        "logsnr_min": "logsnr_min",
        "logsnr_max": "logsnr_max",
        "logsnr_shift": "shift",
    },
}
_TRAINING_FIELDS = ("P_mean", "P_std")
_DEFAULTS: Mapping[str, Any] = {
    "schedule": "cosine",
    "prediction": "v",
    "loss": "v_mse",
    "training": "schedule",
    "min_snr_gamma": 5.0,
    "sigma_data": 0.5,
    "logsnr_min": -20.0,
    "logsnr_max": 20.0,
    "logsnr_shift": 0.0,
    "P_mean": -1.2,
    "P_std": 1.2,
}


def make_process(config: Any) -> Process:
    """A process from a flat configuration, a dict or an ml_collections.ConfigDict.

    Fields: `schedule` (cosine, linear_beta, scaled_linear_beta, edm, rectified_flow),
    `prediction`, `loss`, `training` ("schedule", or "log_normal" with `P_mean`, `P_std`),
    `min_snr_gamma`, `sigma_data`, and the schedule's own: `logsnr_min`, `logsnr_max`,
    `logsnr_shift` (cosine, rectified_flow), `num_timesteps`, `beta_start`, `beta_end`, `zero_snr`
    (the two beta grids), `sigma_min`, `sigma_max`, `rho` (edm). What is absent has its default.

    Raises:
      ValueError: an unknown field, or one that the chosen schedule does not have and that is not
        at its default; an unknown schedule, prediction, loss or training distribution.
    """
    given = dict(config)
    values = {**_DEFAULTS, **given}
    names = {name for fields in _SCHEDULE_FIELDS.values() for name in fields}
    allowed = sorted({*_DEFAULTS, *names, *_TRAINING_FIELDS})
    unknown = sorted(set(given) - set(allowed))
    if unknown:
        raise ValueError(
            f"process: unknown field {', '.join(unknown)}; allowed: {', '.join(allowed)}"
        )
    schedule, training = values["schedule"], values["training"]
    if schedule not in _SCHEDULE_FIELDS:
        raise ValueError(
            f"process.schedule={schedule!r} is unknown; allowed: {', '.join(_SCHEDULE_FIELDS)}"
        )
    if training not in ("schedule", "log_normal"):
        raise ValueError(f"process.training={training!r} is unknown; allowed: schedule, log_normal")

    fields = _SCHEDULE_FIELDS[schedule]
    taken = {*fields, *(_TRAINING_FIELDS if training == "log_normal" else ())}
    for name in names.union(_TRAINING_FIELDS) - taken:
        if name in given and given[name] != _DEFAULTS.get(name):
            raise ValueError(
                f"process.{name}={given[name]!r} has no effect with schedule={schedule!r}, "
                f"training={training!r}; fields that have: {', '.join(sorted(taken))}"
            )
    kwargs = {field: given[name] for name, field in fields.items() if name in given}
    if schedule == "rectified_flow" and "shift" in kwargs:
        # Esser et al.'s time shift α is −2 log α on λ: one field serves both schedules.
        kwargs["shift"] = math.exp(-0.5 * kwargs["shift"])
    training_schedule = None
    if training == "log_normal":
        training_schedule = schedules.LogNormal(
            **{name: given[name] for name in _TRAINING_FIELDS if name in given},
        )
    return Process(
        schedule=schedules.make_schedule(schedule, **kwargs),
        prediction=values["prediction"],
        loss_name=values["loss"],
        training_schedule=training_schedule,
        min_snr_gamma=values["min_snr_gamma"],
        sigma_data=values["sigma_data"],
    )
