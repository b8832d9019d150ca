"""Stable Video Diffusion on scenes, stage 3: clips of 6 x 64 x 64 that begin with an image.

Command: vdm train --config=stable_video/tiny/image_to_video --workdir=DIR/image_to_video \\
    --config.train.init_from=DIR/video
    vdm edit animate --model=DIR/image_to_video --input=frame.png --prompt="a cat moving left"
Hardware: 2 CPU cores are enough.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.clip_config()
    config.model.still = True
    config.model.unet.in_channels = 2 * config.model.unet.out_channels
    config.sample.update({"augmentation": 0.02, "first_guidance": 1.0})
    config.process.P_mean = 0.7
    config.process.P_std = 1.6
    config.train.steps = 480
    return config
