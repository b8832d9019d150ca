"""VDM on BAIR robot pushing, 16 frames of 64 x 64 (Ho et al. 2022, table 2 and appendix A).

Command: vdm train --config=vdm/bair --workdir=DIR
Then: vdm evaluate --model=DIR --protocol=bair --weight=50
Hardware: the paper's is 128 TPU v4 chips; its time is not given.
Published after 660k steps: FVD 68.19 with the ancestral sampler, when 15 frames are predicted from
the first by reconstruction guidance.

Trained unconditionally; prediction conditions at sampling time. The paper also flips left and
right, which is not done here.
"""

from vdm_jax.systems import vdm


def get_config():
    config = vdm.default_config()
    config.model.channel_mult = (1, 2, 3, 4)
    config.model.num_res_blocks = 3
    config.model.dropout = 0.1
    config.data.name = "bair_robot_pushing_small"
    config.data.image_frames = 8
    config.train.steps = 660_000
    config.train.learning_rate = 2e-4
    config.train.beta2 = 0.999
    config.train.weight_decay = 0.01
    config.train.ema_decay = 0.999
    config.sample.gamma = 0.0
    return config
