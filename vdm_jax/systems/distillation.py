"""Distilling a guided model into few steps, as Imagen Video does (Ho et al. 2022, §2.7).

Stage 1 (Meng et al. 2023, algorithm 1): a student that takes the guidance scale as an input learns
what the teacher, evaluated twice and guided, predicts. Stage 2 (Salimans & Ho 2022, algorithm 2):
rounds that halve the number of DDIM steps, each student beginning as its teacher, the student of
the round before. Beside it, for comparison: consistency distillation (Song et al. 2023, algorithm
2) of the student of stage 1. Every round is a training run of its own, of a stage as any other.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, PyTree
from ml_collections import ConfigDict

from vdm_jax.config import ConfigError
from vdm_jax.diffusion import distillation, losses
from vdm_jax.diffusion.grids import logsnr_grid
from vdm_jax.models.layers import Layout
from vdm_jax.stage import guidance
from vdm_jax.stage.protocols import Batch, Frozen
from vdm_jax.stage.stage import Stage
from vdm_jax.systems import build, vdm
from vdm_jax.systems.network import DTYPES

TARGETS = ("guidance", "progressive", "consistency")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistilledStage(Stage):
    """A student, which takes the guidance scale as an input, with a loss against a frozen teacher.

    Attributes:
      teacher: what is imitated: guided, or itself with the guidance scale as an input.
      target: one of `TARGETS`.
      steps: of DDIM: the student's (progressive), or the teacher's on whose grid the student learns
        to be consistent (consistency); stage 1 learns at all noise levels.
      guidance_range: the scales are uniform in it.
      threshold: of the teacher's x̂, one of `guidance.THRESHOLDS`.
      loss_name: one of `losses.LOSSES`.
    """

    teacher: Stage
    target: str
    steps: int
    guidance_range: tuple[float, float]
    threshold: str = "static"
    loss_name: str = "truncated_snr"

    def with_layout(self, layout: Layout) -> "DistilledStage":
        network, teacher = self.network.clone(layout=layout), self.teacher.with_layout(layout)
        return dataclasses.replace(self, network=network, teacher=teacher)

    def loss(
        self, params: PyTree, batch: Batch, key: Key[Array, ""], frozen: Frozen
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """The distillation loss, averaged over the batch, and scalar metrics.

        frozen: holds the teacher's parameters as "teacher".
        """
        time_key, eps_key, guidance_key, dropout_key = jax.random.split(key, 4)
        x, cond, _ = self.example(batch, jax.random.fold_in(key, 4), frozen)
        scale = jax.random.uniform(
            guidance_key, x.shape[:1], minval=self.guidance_range[0], maxval=self.guidance_range[1]
        )
        teacher = guidance.guided(self.teacher.denoiser(frozen["teacher"]), self.teacher, scale)
        if (threshold := guidance.THRESHOLDS[self.threshold]) is not None:
            teacher = threshold(teacher, self.teacher, jnp.zeros(0))

        def network_fn(z, logsnr, cond):
            return self.raw_output(
                params,
                z,
                logsnr,
                {**cond, "guidance": scale},
                train=True,
                rngs={"dropout": dropout_key},
            )

        student = self.process.denoiser(network_fn)
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
        grid = logsnr_grid(self.process.schedule, 2 * self.steps)
        step = jnp.floor(losses.low_discrepancy_times(key, n) * self.steps).astype(jnp.int32)
        step = jnp.minimum(step, self.steps - 1)
        return grid[2 * step], grid[2 * step + 1], grid[2 * step + 2]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """One training run of the ladder.

    Attributes:
      name: of its working directory and of its student.
      target: one of `TARGETS`.
      teacher: name of the round whose student is the teacher, and where this student begins; "" is
        the original teacher.
      steps: as in `DistilledStage`.
      sample_steps: in how many steps the student is sampled.
      updates: of training.
    """

    name: str
    target: str
    teacher: str
    steps: int
    sample_steps: tuple[int, ...]
    updates: int


def default_config() -> ConfigDict:
    """Every field of a distillation; model, process, text and data are the teacher's."""
    base = vdm.default_config()
    train = base.train.to_dict()
    # What a teacher settles, or what has no meaning here.
    for name in ("init_from", "lora", "steps", "minutes", "cond_dropout"):
        del train[name]
    return ConfigDict(
        {
            "device": "any",
            "mesh": base.mesh.to_dict(),
            "data": {"data_dir": "data", "workers": 4},
            "train": {**train, "schedule": "cosine"},
            "checkpoint": base.checkpoint.to_dict(),
            "distill": {
                "teacher_dtype": "bfloat16",
                # The sampler that is distilled: DDIM, uniform in t.
                "teacher_steps": 256,
                "threshold": "static",
                "guidance_min": 1.0,
                "guidance_max": 4.0,
                "loss": "truncated_snr",
                # 0: no stage 1, for models that are sampled without guidance (scales from 1 to 1).
                "guidance_updates": 50_000,
                "end_steps": 1,
                "updates": 50_000,
                # Rounds to at most `last_steps` steps are given more: they change most.
                "last_steps": 2,
                "last_updates": 100_000,
                # 0: no consistency distillation.
                "consistency_steps": 256,
                "consistency_updates": 0,
                # The report: samples for the judge, and the guidance scale that they have.
                "samples": 128,
                "guidance": 2.0,
            },
        }
    ).lock()


def rounds(distill: ConfigDict) -> list[Round]:
    """The ladder of a configuration's section `distill`. Raises ConfigError."""
    _check(distill)
    ladder = []
    if distill.guidance_updates:
        first = Round(
            name="guidance",
            target="guidance",
            teacher="",
            steps=distill.teacher_steps,
            sample_steps=(distill.teacher_steps,),
            updates=distill.guidance_updates,
        )
        ladder.append(first)
    steps = distill.teacher_steps
    while steps > distill.end_steps:
        steps //= 2
        last = steps <= distill.last_steps
        ladder.append(
            Round(
                name=f"progressive_{steps}",
                target="progressive",
                teacher=ladder[-1].name if ladder else "",
                steps=steps,
                sample_steps=(steps,),
                updates=distill.last_updates if last else distill.updates,
            )
        )
    if distill.consistency_updates:
        few = [step for step in (8, 4, 2, 1) if step < distill.teacher_steps]
        ladder.append(
            Round(
                name="consistency",
                target="consistency",
                teacher="guidance",
                steps=distill.consistency_steps,
                sample_steps=tuple(few),
                updates=distill.consistency_updates,
            )
        )
    return ladder


def round_config(
    teacher: ConfigDict, config: ConfigDict, this: Round, source: str, digest: str
) -> ConfigDict:
    """The configuration of one round's training, which is also that of its student.

    Args:
      teacher: the original teacher's.
      config: of the distillation.
      source: where the original teacher was found.
      digest: of the round's own teacher, whose parameters are frozen and in no checkpoint, so that
        a run is not resumed with another one.
    """
    student = teacher.copy_and_resolve_references()
    with student.unlocked():
        student.device = config.device
        student.mesh = ConfigDict(config.mesh.to_dict())
        student.data.data_dir, student.data.workers = config.data.data_dir, config.data.workers
        student.data.image_frames = 0
        student.model.guidance_embedding = True
        student.train = ConfigDict(
            {
                **config.train.to_dict(),
                "steps": this.updates,
                "minutes": 0.0,
                "init_from": "",
                "cond_dropout": 0.0,
            }
        )
        student.checkpoint = ConfigDict(config.checkpoint.to_dict())
        # Only what its training depends on: the ladder may be made longer, or reported otherwise.
        names = ("teacher_dtype", "threshold", "guidance_min", "guidance_max", "loss")
        student.distill = ConfigDict(
            {
                "teacher": source,
                "teacher_digest": digest,
                "round": this.teacher,
                "target": this.target,
                "steps": this.steps,
                **{name: config.distill[name] for name in names},
            }
        )
        student.sample.sampler = "consistency" if this.target == "consistency" else "ddim"
        student.sample.steps = this.sample_steps[0]
        student.sample.guidance = config.distill.guidance
        student.sample.threshold = config.distill.threshold
        for name in ("eta", "gamma", "churn", "churn_min", "churn_max", "churn_noise"):
            student.sample[name] = None  # a teacher's own rule may have had them
        student.sample.corrector = 0.0
        student.sample.grid = "time"
    return student.lock()


def build_round(teacher: Stage, config: ConfigDict, this: Round) -> DistilledStage:
    """The stage that one round trains. config: of the round, see `round_config`."""
    distill, student = config.distill, build(config)
    parts = {field.name: getattr(student, field.name) for field in dataclasses.fields(Stage)}
    return DistilledStage(
        **parts,
        teacher=teacher,
        target=this.target,
        steps=this.steps,
        guidance_range=(distill.guidance_min, distill.guidance_max),
        threshold=distill.threshold,
        loss_name=distill.loss,
    )


def _check(distill: ConfigDict) -> None:
    problems = []

    def need(name: str, ok: bool, allowed: str) -> None:
        if not ok:
            problems.append(f"distill.{name} = {distill[name]!r}: must be {allowed}")

    for name in ("teacher_steps", "end_steps"):
        steps = distill[name]
        need(name, steps >= 1 and steps & (steps - 1) == 0, "a power of 2: steps are halved")
    need("end_steps", distill.end_steps <= distill.teacher_steps, "at most distill.teacher_steps")
    for name in ("updates", "last_updates", "consistency_steps", "samples"):
        need(name, distill[name] >= 1, ">= 1")
    need("guidance_max", distill.guidance_max >= distill.guidance_min, ">= distill.guidance_min")
    if distill.guidance_min == distill.guidance_max == 1 and not distill.consistency_updates:
        need("guidance_updates", distill.guidance_updates >= 0, ">= 0")
    else:
        need(
            "guidance_updates", distill.guidance_updates >= 1, ">= 1: there is guidance to fold in"
        )
    need("consistency_updates", distill.consistency_updates >= 0, ">= 0")
    need("loss", distill.loss in losses.LOSSES, f"one of {', '.join(losses.LOSSES)}")
    need("threshold", distill.threshold in guidance.THRESHOLDS, "none, static or dynamic")
    need("teacher_dtype", distill.teacher_dtype in DTYPES, f"one of {', '.join(DTYPES)}")
    if problems:
        raise ConfigError("\n".join(problems))
