"""All stages of Make-A-Video: a text to 76 frames of 768 x 768 (Singer et al. 2022, equation 1).

Command: vdm train --config=make_a_video/paper/cascade --workdir=DIR
"""

from vdm_jax.pipelines import cascade
from vdm_jax.systems import make_a_video


def get_config():
    return cascade.cascade_config(make_a_video.STAGES, make_a_video.ORIGINS)
