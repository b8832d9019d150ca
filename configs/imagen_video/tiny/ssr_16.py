"""Imagen Video on moving shapes, 8 frames of 8 x 8 to 16 x 16.

Command: vdm train --config=imagen_video/tiny/ssr_16 --workdir=DIR
Hardware: 2 CPU cores are enough; the whole cascade: imagen_video/tiny/cascade.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.tiny_config("ssr_16")
    recipe.about_bilinear(config)
    config.model.channels = 64
    config.model.patch_size = 2
    config.train.batch_size = 32
    config.train.steps = 2500
    return config
