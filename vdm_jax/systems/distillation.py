"""Distilling a guided model into few steps, as Imagen Video does (Ho et al. 2022, §2.7).

Stage 1 (Meng et al. 2023, algorithm 1): a student that takes the guidance scale as an input learns
what the teacher, evaluated twice and guided, predicts. Stage 2 (Salimans & Ho 2022, algorithm 2):
rounds that halve the number of DDIM steps, each student beginning as its teacher, the student of
the round before. Beside it: consistency distillation (Song et al. 2023, algorithm 2) and
distribution matching (Yin et al. 2024, DMD2) of the student of stage 1. Every round is a training
run of its own, of a stage as any other.
"""

import dataclasses

from ml_collections import ConfigDict

from vdm_jax.config import ConfigError
from vdm_jax.diffusion import losses
from vdm_jax.stage import guidance
from vdm_jax.stage.distilled import DistilledStage, StudentStage
from vdm_jax.stage.distribution import DistributionStage
from vdm_jax.stage.stage import Stage
from vdm_jax.systems import build, vdm
from vdm_jax.systems.network import DTYPES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Round:
    """One training run of the ladder.

    Attributes:
      name: of its working directory and of its student.
      target: one of `distilled.TARGETS`, or "distribution".
      teacher: name of the round whose student is the teacher, and where this student begins; "" is
        the original teacher.
      steps: as in `DistilledStage` and `DistributionStage`.
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
                # 0: no distribution matching. Of `critic_updates` updates, which all train the
                # critic, one trains the student.
                "distribution_steps": 4,
                "distribution_updates": 0,
                "critic_updates": 5,
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
    if distill.distribution_updates:
        ladder.append(
            Round(
                name="distribution",
                target="distribution",
                teacher="guidance",
                steps=distill.distribution_steps,
                sample_steps=(distill.distribution_steps,),
                updates=distill.distribution_updates,
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
        names = ["teacher_dtype", "threshold", "guidance_min", "guidance_max"]
        names.append("critic_updates" if this.target == "distribution" else "loss")
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
        fresh_noise = this.target in ("consistency", "distribution")
        student.sample.sampler = "consistency" if fresh_noise else "ddim"
        student.sample.steps = this.sample_steps[0]
        student.sample.guidance = config.distill.guidance
        student.sample.threshold = config.distill.threshold
        for name in ("eta", "gamma", "churn", "churn_min", "churn_max", "churn_noise"):
            student.sample[name] = None  # a teacher's own rule may have had them
        student.sample.corrector = 0.0
        student.sample.grid = "time"
    return student.lock()


def build_round(teacher: Stage, config: ConfigDict, this: Round) -> StudentStage:
    """The stage that one round trains. config: of the round, see `round_config`."""
    distill, student = config.distill, build(config)
    parts = {field.name: getattr(student, field.name) for field in dataclasses.fields(Stage)}
    parts |= {
        "teacher": teacher,
        "steps": this.steps,
        "guidance_range": (distill.guidance_min, distill.guidance_max),
        "threshold": distill.threshold,
    }
    if this.target == "distribution":
        return DistributionStage(**parts, critic_updates=distill.critic_updates)
    return DistilledStage(**parts, target=this.target, loss_name=distill.loss)


def _check(distill: ConfigDict) -> None:
    problems = []

    def need(name: str, ok: bool, allowed: str) -> None:
        if not ok:
            problems.append(f"distill.{name} = {distill[name]!r}: must be {allowed}")

    for name in ("teacher_steps", "end_steps"):
        steps = distill[name]
        need(name, steps >= 1 and steps & (steps - 1) == 0, "a power of 2: steps are halved")
    need("end_steps", distill.end_steps <= distill.teacher_steps, "at most distill.teacher_steps")
    whole = ("updates", "last_updates", "consistency_steps", "distribution_steps", "critic_updates")
    for name in (*whole, "samples"):
        need(name, distill[name] >= 1, ">= 1")
    need("guidance_max", distill.guidance_max >= distill.guidance_min, ">= distill.guidance_min")
    # Both start from the student of the first round.
    needs_guidance_round = distill.consistency_updates or distill.distribution_updates
    unguided = distill.guidance_min == distill.guidance_max == 1
    if unguided and not needs_guidance_round:
        need("guidance_updates", distill.guidance_updates >= 0, ">= 0")
    else:
        need(
            "guidance_updates", distill.guidance_updates >= 1, ">= 1: there is guidance to fold in"
        )
    for name in ("consistency_updates", "distribution_updates"):
        need(name, distill[name] >= 0, ">= 0")
    need("loss", distill.loss in losses.LOSSES, f"one of {', '.join(losses.LOSSES)}")
    need("threshold", distill.threshold in guidance.THRESHOLDS, "none, static or dynamic")
    need("teacher_dtype", distill.teacher_dtype in DTYPES, f"one of {', '.join(DTYPES)}")
    if problems:
        raise ConfigError("\n".join(problems))
