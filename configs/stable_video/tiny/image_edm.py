"""Stable Video Diffusion on scenes, stage 1: the image model trained on to EDM's noise levels.

Command: vdm train --config=stable_video/tiny/image_edm --workdir=DIR/image_edm \\
    --config.train.init_from=IMAGE_MODEL
Hardware: 2 CPU cores are enough.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.tiny_config()
    config.process.P_mean = 0.0
    config.process.P_std = 1.2
    config.train.steps = 300
    config.train.batch_size = 16
    return config
