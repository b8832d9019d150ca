"""Imagen Video on moving shapes, 16 frames of 32 x 32 to 32 frames.

Command: vdm train --config=imagen_video/tiny/tsr_24fps --workdir=DIR
Hardware: 4 minutes of a GPU that others share, or 2 hours of 2 CPU cores; the
whole cascade: imagen_video/tiny/cascade.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.tiny_config("tsr_24fps")
    recipe.about_blends(config)
    config.model.channels = 64
    config.model.patch_size = 4
    config.train.batch_size = 32
    config.train.steps = 4000
    return config
