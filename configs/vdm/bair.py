"""VDM on BAIR robot pushing, 16 frames of 64 x 64 (Ho & Salimans et al. 2022, table 3).

Command: python -m launch.train --config=configs/vdm/bair.py --workdir=DIR
Hardware: 16 accelerators of 32 GiB or more; the paper names none.
Published after 660k steps: FVD 66.9 when 15 frames are predicted from
the first by reconstruction guidance.

Trained unconditionally; prediction conditions at sampling time. Residual blocks a level and the
levels with attention are our reading of the paper.
"""

from vdm_jax.systems import vdm


def get_config():
    config = vdm.default_config()
    config.model.channel_mult = (1, 2, 3, 4)
    config.data.name = "bair_robot_pushing_small"
    config.train.steps = 660_000
    return config
