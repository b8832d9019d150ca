"""VDM on UCF101, unconditional, 16 frames of 64 x 64 (Ho et al. 2022, table 1 and appendix A).

Command: vdm train --config=vdm/ucf101 --workdir=DIR
Hardware: the paper's is 128 TPU v4 chips; its time is not given.
Published after 60k steps: FID 295, IS 57.
"""

from vdm_jax.systems import vdm


def get_config():
    config = vdm.default_config()
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.model.remat = "full"
    config.model.channels = 256
    config.model.dropout = 0.1
    config.process.prediction = "eps"
    config.process.loss = "eps_mse"
    config.data.name = "ucf101"
    config.data.image_frames = 8
    config.train.steps = 60_000
    config.sample.gamma = 0.1
    return config
