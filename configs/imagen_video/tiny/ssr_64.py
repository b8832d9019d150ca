"""Imagen Video on moving shapes, 32 frames of 32 x 32 to 64 x 64, fully convolutional.

Command: vdm train --config=imagen_video/tiny/ssr_64 --workdir=DIR
Hardware: 2 CPU cores are enough; the whole cascade: imagen_video/tiny/cascade.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.tiny_config("ssr_64")
    recipe.about_bilinear(config)
    config.model.channels = 48
    config.model.patch_size = 4
    config.model.spatial_attention = "none"
    config.model.norm_groups = 0
    config.stage.crop = (8, 32, 32)
    config.train.steps = 2500
    return config
