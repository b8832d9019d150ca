"""Stable Video Diffusion on scenes, stage 2: layers over frames, clips of 6 x 64 x 64.

Command: vdm train --config=stable_video/tiny/video --workdir=DIR/video \\
    --config.train.init_from=DIR/image_edm
Hardware: 2 CPU cores are enough.

Joint training with images: --config.data.image_frames=4 adds four images to every clip.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.clip_config()
    config.process.P_mean = 0.5
    config.process.P_std = 1.4
    config.train.steps = 320
    return config
