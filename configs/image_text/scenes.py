"""An image-text pair of scenes' frames, 64 x 64 pixels, and their captions.

Command: vdm data embed --config=image_text/scenes
         vdm train --config=image_text/scenes
         vdm convert --to=diffusers --model=runs/image_text/scenes --out=DIR --dtype=float16
Hardware: 2 CPU cores.

Both vectors have 128 features. The text encoder is MiniLM, which stays as it is.
"""

from vdm_jax.systems import image_text


def get_config():
    config = image_text.default_config()
    config.text.max_length = 20
    config.data.name = "scenes"
    config.data.config = "64x64x16"
    config.data.image_size = 64
    config.data.workers = 0
    config.train.steps = 1000
    config.train.batch_size = 128
    config.train.learning_rate = 2e-3
    config.train.schedule = "cosine"
    config.train.warmup_steps = 100
    config.train.ema_decay = 0.995
    config.train.log_every = 25
    config.train.sample_every = 0
    config.checkpoint.every = 250
    return config
