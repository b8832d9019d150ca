"""Make-A-Video on scenes, the prior P: a caption to the embedding of a frame.

Command: vdm data embed --config=make_a_video/tiny/prior
         vdm train --config=make_a_video/tiny/prior --workdir=DIR/prior
Hardware: 2 CPU cores; the whole cascade: make_a_video/tiny/cascade.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.prior()
    config.train.batch_size = 64
    config.train.steps = 700
    return config.lock()
