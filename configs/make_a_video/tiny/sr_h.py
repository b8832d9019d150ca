"""Make-A-Video on scenes, SR_h: each of 16 frames of 128 x 128 to 256 x 256 pixels by itself. All
frames begin with the same noise.

Command: vdm train --config=make_a_video/tiny/sr_h --workdir=DIR/sr_h
Hardware: 2 CPU cores; the whole cascade: make_a_video/tiny/cascade.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.super_resolution(256, temporal=False)
    config.sample.shared_noise = True
    config.train.steps = 300
    return config.lock()
