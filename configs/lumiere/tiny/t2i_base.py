"""Lumiere on moving shapes, first: text to images of 16 x 16.

Command: vdm train --config=lumiere/tiny/t2i_base --workdir=DIR/t2i_base
Hardware: 2 CPU cores are enough.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    return recipe.tiny_base()
