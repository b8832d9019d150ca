"""Imagen Video on moving shapes, 8 frames of 32 x 32 to 16 frames.

Command: vdm train --config=imagen_video/tiny/tsr_12fps --workdir=DIR
Hardware: 2 CPU cores are enough; the whole cascade: imagen_video/tiny/cascade.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.tiny_config("tsr_12fps")
    recipe.about_blends(config)
    config.model.channels = 64
    config.model.patch_size = 4
    config.train.batch_size = 32
    config.train.steps = 3000
    return config
