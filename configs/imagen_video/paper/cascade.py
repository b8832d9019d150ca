"""The seven stages of Imagen Video, 16 frames of 40 x 24 to 128 frames of 1280 x 768.

Command: vdm train --config=imagen_video/paper/STAGE --workdir=DIR/STAGE
         for each stage, on pods of their own; then, to make DIR a cascade,
         vdm train --config=imagen_video/paper/cascade --workdir=DIR --stages=
         vdm sample --model=DIR --prompt="..."
"""

from vdm_jax.pipelines import cascade as cascade_sampling
from vdm_jax.systems import imagen_video


def get_config():
    return cascade_sampling.cascade_config([spec.name for spec in imagen_video.PAPER])
