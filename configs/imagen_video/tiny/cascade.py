"""The seven stages of Imagen Video on moving shapes, 4 frames of 8 x 8 to 32 frames of 64 x 64.

Command: vdm train --config=imagen_video/tiny/cascade --workdir=DIR
         vdm sample --model=DIR --prompt="a red circle moving left and a blue square moving up"
"""

from vdm_jax.config import load_recipe
from vdm_jax.pipelines import cascade as cascade_sampling

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    return cascade_sampling.cascade_config([spec.name for spec in recipe.TINY])
