"""Training of one stage: state, optimiser, step, checkpoints, metrics and the loop."""

from collections.abc import Mapping
from typing import Any

from vdm_jax.rules import COUNT, DECAY, FRACTION, NOT_NEGATIVE, POSITIVE, Choice, Number

RULES = {
    "train.steps": COUNT,
    "train.minutes": NOT_NEGATIVE,
    "train.batch_size": COUNT,
    "train.seed": Number(low=0, high=2**32 - 1),
    "train.optimizer": Choice(("adamw", "muon")),
    "train.learning_rate": POSITIVE,
    "train.warmup_steps": NOT_NEGATIVE,
    "train.schedule": Choice(("constant", "cosine")),
    "train.beta1": DECAY,
    "train.beta2": DECAY,
    "train.weight_decay": NOT_NEGATIVE,
    "train.clip_norm": NOT_NEGATIVE,
    "train.accumulate": COUNT,
    "train.moment_dtype": Choice(("float32", "bfloat16")),
    "train.skip_nonfinite": NOT_NEGATIVE,
    "train.ema_decay": DECAY,
    "train.cond_dropout": FRACTION,
    "train.lora.rank": NOT_NEGATIVE,
    "train.lora.alpha": NOT_NEGATIVE,
    "train.log_every": COUNT,
    "train.sample_every": NOT_NEGATIVE,
    "checkpoint.every": COUNT,
    "checkpoint.keep": COUNT,
}


def check(fields: Mapping[str, Any]) -> list[str]:
    """The rules that concern several fields: a message for each that is broken.

    fields: the values of a configuration by dotted field, which all keep `RULES`.
    """
    problems = []
    batch, accumulate = fields.get("train.batch_size"), fields.get("train.accumulate", 1)
    if batch is not None and batch % accumulate:
        problems.append(
            f"train.batch_size = {batch}: must divide by train.accumulate = {accumulate} "
            "(the batch of one update is split into that many microbatches)"
        )
    if (rank := fields.get("train.lora.rank")) and not fields.get("train.lora.base"):
        problems.append(
            f"train.lora.base = '': must name the model that train.lora.rank = {rank} adapts"
        )
    return problems
