"""Distillation of the moving-shapes model: 64 steps with guidance to 1 without.

Command: vdm distill --config=vdm/moving_shapes_distill --workdir=DIR
Hardware: 2 CPU cores are enough.

The teacher is the shipped model unless --model names another. The student of 8 steps of this
ladder ships as moving_shapes_8step.
"""

from vdm_jax.systems import distillation


def get_config():
    config = distillation.default_config()
    config.data.workers = 0
    config.train.batch_size = 16
    config.train.learning_rate = 5e-4
    config.train.warmup_steps = 50
    config.train.ema_decay = 0.995
    config.train.log_every = 50
    config.train.sample_every = 0
    config.checkpoint.every = 500
    config.checkpoint.keep = 1
    config.distill.teacher_steps = 64
    config.distill.guidance_updates = 1500
    config.distill.updates = 600
    config.distill.last_updates = 1500
    config.distill.consistency_steps = 32
    config.distill.consistency_updates = 1500
    return config
