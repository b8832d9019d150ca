"""The seven stages of Imagen Video, 16 frames of 40 x 24 to 128 frames of 1280 x 768.

Command: python -m launch.train --config=configs/imagen_video/paper/STAGE.py --workdir=DIR/STAGE
         for each stage, on pods of their own; then
         python -m launch.sample --cascade=configs/imagen_video/paper/cascade.py --workdir=DIR \\
             --prompt="..."
"""

from vdm_jax.pipelines import cascade as cascade_sampling
from vdm_jax.systems import imagen_video


def get_config():
    return cascade_sampling.cascade_config([spec.name for spec in imagen_video.PAPER])
