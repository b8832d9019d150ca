"""Lumiere's image model, 128 x 128, of the size that its paper does not give.

Command: vdm train --config=lumiere/paper/t2i_base --workdir=DIR/t2i_base
Hardware: a pod; see docs/pods.md.

1.5 billion parameters, 1.95 inflated: near Imagen's base model (2 billion), a cascaded image model
in pixel space as this one is.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    return recipe.paper_base()
