"""Lumiere on moving shapes, the base: 32 frames of 16 x 16 in one pass, an image model inflated.

Command: vdm train --config=lumiere/tiny/base_32f_16 \\
             --workdir=DIR/base_32f_16 --config.train.init_from=DIR/t2i_base
Hardware: 2 CPU cores are enough.

Clips of which nothing is known, and, as often together, of which a part is.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.whole_clip(recipe.tiny_base())
    config.stage.name = "base_32f_16"
    config.stage.masks = ("none", "none", "none", "first_frame", "inpaint", "cinemagraph")
    # 32 frames show where an object goes at far more noise than one shows the object.
    config.process.logsnr_shift = -5.0
    config.train.steps = 8000
    return config
