"""Lumiere's image super-resolution model: 128 x 128 to 1024 x 1024 pixels.

Command: vdm train --config=lumiere/paper/t2i_ssr --workdir=DIR/t2i_ssr
Hardware: a pod; see docs/pods.md.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.paper_ssr()
    config.stage.crop = (256, 256)
    return config
