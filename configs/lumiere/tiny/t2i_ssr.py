"""Lumiere on moving shapes: images of 16 x 16 to 32 x 32.

Command: vdm train --config=lumiere/tiny/t2i_ssr --workdir=DIR/t2i_ssr
Hardware: 2 CPU cores are enough.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    return recipe.tiny_ssr()
