"""Students: stages that learn to do in few evaluations what a frozen teacher does in many."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree

from vdm_jax.diffusion import distillation, grids, losses
from vdm_jax.diffusion.process import Denoiser
from vdm_jax.models.layers import Layout
from vdm_jax.stage import guidance
from vdm_jax.stage.protocols import Batch, Frozen
from vdm_jax.stage.stage import Stage

TARGETS = ("guidance", "progressive", "consistency")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentStage(Stage):
    """A student, which takes the guidance scale as an input, and its frozen teacher.

    Attributes:
      teacher: what is imitated: guided, or itself with the guidance scale as an input.
      steps: see the kinds of stages.
      guidance_range: the scales are uniform in it.
      threshold: of the teacher's x̂, one of `guidance.THRESHOLDS`.
    """

    teacher: Stage
    steps: int
    guidance_range: tuple[float, float]
    threshold: str = "static"

    def with_layout(self, layout: Layout) -> "StudentStage":
        network, teacher = self.network.clone(layout=layout), self.teacher.with_layout(layout)
        return dataclasses.replace(self, network=network, teacher=teacher)

    def begun(self, params: PyTree) -> PyTree:
        """The parameters that are trained, from those of a network to begin with."""
        return params

    def student(self, params: PyTree) -> PyTree:
        """The student's network among the parameters that are trained."""
        return params

    def update_flops(self) -> float:
        """Operations of an update for one clip: the student's forward and backward pass, which
        count three, and two forward passes of the teacher."""
        return self.train_flops() * (1 + 2 / 3)

    def scales(self, key: Key[Array, ""], n: int) -> Float[Array, "{n}"]:
        """Guidance scales of n examples."""
        low, high = self.guidance_range
        return jax.random.uniform(key, (n,), minval=low, maxval=high)

    def guided_teacher(self, frozen: Frozen, scale: Float[Array, "b"]) -> Denoiser:
        """The teacher as its sampler has it: guided by `scale`, with its threshold."""
        teacher = guidance.guided(self.teacher.denoiser(frozen["teacher"]), self.teacher, scale)
        if (threshold := guidance.THRESHOLDS[self.threshold]) is not None:
            teacher = threshold(teacher, self.teacher, jnp.zeros(0))
        return teacher

    def bound(self, params: PyTree, scale: Float[Array, "b"], dropout: Key[Array, ""]) -> Callable:
        """The network in training with these parameters and scales, of (z, logsnr, cond)."""
        return lambda z, logsnr, cond: self.raw_output(
            params,
            z,
            logsnr,
            {**cond, "guidance": scale},
            train=True,
            rngs={"dropout": dropout},
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilledStage(StudentStage):
    """A student with a loss against what its teacher predicts.

    `steps` are DDIM's: the student's (progressive), or the teacher's on whose grid the student
    learns to be consistent (consistency); stage 1 learns at all noise levels.

    Attributes:
      target: one of `TARGETS`.
      loss_name: one of `losses.LOSSES`.
    """

    target: str
    loss_name: str = "truncated_snr"

    def loss(
        self, params: PyTree, batch: Batch, key: Key[Array, ""], frozen: Frozen
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The distillation loss, averaged over the batch, and scalar metrics.

        frozen: holds the teacher's parameters as "teacher".
        """
        time_key, eps_key, guidance_key, dropout_key = jax.random.split(key, 4)
        x, cond, _ = self.example(batch, jax.random.fold_in(key, 4), frozen)
        scale = self.scales(guidance_key, x.shape[0])
        teacher = self.guided_teacher(frozen, scale)
        student = self.process.denoiser(self.bound(params, scale, dropout_key))
        logsnr_t, logsnr_mid, logsnr_s = self._logsnrs(time_key, x.shape[0])
        z = self.process.add_noise(x, jax.random.normal(eps_key, x.shape, jnp.float32), logsnr_t)
        if self.target == "guidance":
            target = teacher(z, logsnr_t, cond).x
        elif self.target == "progressive":
            target = distillation.two_step_target(teacher, z, logsnr_t, logsnr_mid, logsnr_s, cond)
        else:
            target = distillation.consistency_target(teacher, student, z, logsnr_t, logsnr_s, cond)
        prediction = student(z, logsnr_t, cond)
        loss = losses.make_loss(self.loss_name)
        metrics = {"x_mse": jnp.mean(jnp.square(prediction.x - target))}
        return distillation.distillation_loss(loss, prediction, target).mean(), metrics

    def _logsnrs(
        self, key: Key[Array, ""], n: int
    ) -> tuple[Float[Array, "{n}"], Float[Array, "{n}"], Float[Array, "{n}"]]:
        """λ_t, λ_mid and λ_s of n examples: where a step begins, its middle in t, its end."""
        if self.target == "guidance":
            logsnr = self.process.sample_logsnr(key, n)
            return logsnr, logsnr, logsnr
        # The sampler's own grid, and the middles of its steps: λ = +inf at the end.
        grid = grids.logsnr_grid(self.process.schedule, 2 * self.steps)
        step = jnp.floor(losses.low_discrepancy_times(key, n) * self.steps).astype(jnp.int32)
        step = jnp.minimum(step, self.steps - 1)
        return grid[2 * step], grid[2 * step + 1], grid[2 * step + 2]
