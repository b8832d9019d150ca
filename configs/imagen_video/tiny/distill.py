"""Distillation of the stages of Imagen Video on moving shapes: to 8 steps, guidance folded in.

Command: vdm train --config=imagen_video/tiny/cascade \\
             --distill=imagen_video/tiny/distill --workdir=DIR
Hardware: 2 CPU cores are enough.

The base is guided, the others are not: they need no round for it.
"""

from vdm_jax.systems import distillation


def get_config(stage: str):
    config = distillation.default_config()
    base = stage == "base_8"
    config.data.workers = 0
    # Where a clip is large, few of them show as many pixels.
    config.train.batch_size = {"ssr_64": 4, "tsr_24fps": 4, "tsr_12fps": 8}.get(stage, 16)
    config.train.learning_rate = 5e-4
    config.train.warmup_steps = 50
    config.train.ema_decay = 0.99
    config.train.log_every = 50
    config.train.sample_every = 0
    config.checkpoint.every = 500
    config.checkpoint.keep = 1
    config.distill.teacher_dtype = "float32"
    config.distill.teacher_steps = 64 if base else 32
    config.distill.end_steps = 8
    config.distill.guidance_max = 4.0 if base else 1.0
    config.distill.guidance_updates = 1500 if base else 0
    config.distill.guidance = 2.0 if base else 1.0
    config.distill.updates = 600 if base else 200
    config.distill.samples = 32 if base else 16
    return config
