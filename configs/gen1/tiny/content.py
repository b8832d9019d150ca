"""Gen-1 on scenes, phase 1: the image model takes an image's embedding in the place of a text.

Command: vdm train --config=gen1/tiny/content --workdir=DIR/content
Hardware: 2 CPU cores, about 5 minutes.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.tiny_config(frames=1, temporal=False)
    config.train.init_from = recipe.BASE
    config.train.steps = 250
    config.train.batch_size = 32
    return config
