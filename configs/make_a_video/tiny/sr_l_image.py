"""Make-A-Video on scenes, SR_l: frames of 64 x 64 to 128 x 128 pixels.

Command: vdm data prepare --config=make_a_video/tiny/sr_l_image
         vdm train --config=make_a_video/tiny/sr_l_image --workdir=DIR/sr_l_image
Hardware: 2 CPU cores; the whole cascade: make_a_video/tiny/cascade.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.super_resolution(128, temporal=False)
    config.train.steps = 300
    return config.lock()
