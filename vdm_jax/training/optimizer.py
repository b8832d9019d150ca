"""The optimiser of a configuration: warm-up, clipping, AdamW."""

import jax
import optax


def make_schedule(train) -> optax.Schedule:
    """Learning rate by update: linear warm-up, then constant or cosine to zero at `train.steps`.

    Reads train.{learning_rate, warmup_steps, schedule, steps}.
    """
    warmup = train.warmup_steps
    if train.schedule == "cosine":
        if warmup >= train.steps:
            raise ValueError(
                f"train.warmup_steps = {warmup}: must be smaller than train.steps = {train.steps}"
            )
        after = optax.cosine_decay_schedule(train.learning_rate, train.steps - warmup)
    elif train.schedule == "constant":
        after = optax.constant_schedule(train.learning_rate)
    else:
        raise ValueError(f"train.schedule = {train.schedule!r}: must be one of constant, cosine")

    if warmup == 0:
        return after
    # The first update already moves: 1/warmup of the rate, not zero.
    start = train.learning_rate / warmup
    ramp = optax.linear_schedule(start, train.learning_rate, max(warmup - 1, 1))
    return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(train) -> optax.GradientTransformation:
    """Global-norm clipping (train.clip_norm, 0 = none) and AdamW with `make_schedule`'s rate.

    Weight decay acts on matrices and kernels only, never on biases and scales. The first moments
    are kept in train.moment_dtype, the second in float32.
    """
    clip = optax.clip_by_global_norm(train.clip_norm) if train.clip_norm else optax.identity()
    adamw = optax.adamw(
        make_schedule(train),
        b1=train.beta1,
        b2=train.beta2,
        mu_dtype=train.moment_dtype,
        weight_decay=train.weight_decay,
        mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
    )
    return optax.chain(clip, adamw)
