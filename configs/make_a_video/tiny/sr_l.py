"""Make-A-Video on scenes, SR_l with layers over frames: 16 frames of 64 x 64 to 128 x 128 pixels.

Command: vdm train --config=make_a_video/tiny/sr_l --workdir=DIR/sr_l \\
    --config.train.init_from=DIR/sr_l_image
Hardware: 2 CPU cores; the whole cascade: make_a_video/tiny/cascade.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.super_resolution(128, temporal=True)
    config.train.steps = 300
    config.train.batch_size = 4
    return config.lock()
