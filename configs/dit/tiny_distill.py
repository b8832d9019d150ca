"""Distils dit/tiny: guidance into the network, then fewer steps of DDIM.

Command: vdm distill --config=dit/tiny_distill --model=runs/dit/tiny --workdir=runs/dit/distilled
Hardware: 2 CPU cores.
"""

from vdm_jax.systems import distillation


def get_config():
    config = distillation.default_config()
    config.data.workers = 0
    config.train.batch_size = 16
    config.train.learning_rate = 5e-4
    config.train.warmup_steps = 50
    config.train.ema_decay = 0.99
    config.train.log_every = 50
    config.train.sample_every = 0
    config.checkpoint.every = 500
    config.distill.teacher_dtype = "float32"
    config.distill.teacher_steps = 32
    config.distill.threshold = "none"  # latents are not clipped
    config.distill.guidance_max = 4.0
    config.distill.guidance_updates = 800
    config.distill.end_steps = 4
    config.distill.updates = 500
    config.distill.last_steps = 4
    config.distill.last_updates = 800
    config.distill.guidance = 3.0
    return config
