"""VDM on UCF101, unconditional, 16 frames of 64 x 64 (Ho & Salimans et al. 2022, table 1).

Command: python -m launch.train --config=configs/vdm/ucf101.py --workdir=DIR
Hardware: a TPU v4-64 or 32 H100s; the paper names none.
Published after 60k steps: FID 295, IS 57.

Channels, multipliers, batch, learning rate and steps are the paper's; two residual blocks a level
and the levels with attention (feature sizes 32, 16 and 8) are our reading of it.
"""

from vdm_jax.systems import vdm


def get_config():
    config = vdm.default_config()
    config.model.channels = 256
    config.process.prediction = "eps"
    config.process.loss = "eps_mse"
    config.data.name = "ucf101"
    config.data.image_frames = 8
    config.train.steps = 60_000
    config.train.learning_rate = 3e-4
    config.train.ema_decay = 0.999
    return config
