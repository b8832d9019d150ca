"""All stages of Make-A-Video on scenes: a caption of a frame to 16 frames of 256 x 256.

Command: vdm data prepare --data=scenes/64x64x16
         vdm train --config=make_a_video/tiny/cascade --workdir=DIR
         vdm sample --model=DIR --prompt="a cat on the left of a green meadow"
Hardware: 2 CPU cores, about an hour of them.
"""

from vdm_jax.pipelines import cascade
from vdm_jax.systems import make_a_video


def get_config():
    return cascade.cascade_config(make_a_video.STAGES, make_a_video.ORIGINS)
