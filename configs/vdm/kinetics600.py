"""VDM on Kinetics-600, 16 frames of 64 x 64 (Ho & Salimans et al. 2022, table 4).

Command: python -m launch.train --config=configs/vdm/kinetics600.py \
    --workdir=DIR --config.data.data_dir=FOLDER_OF_VIDEOS
Hardware: a TPU v4-64 or 32 H100s; the paper names none.
Published after 220k steps: FVD 16.2 when 11 frames are predicted from 5 by reconstruction
guidance.

Kinetics is a folder of videos, not a TFDS data set: data.data_dir is where they lie. Trained
unconditionally. Residual blocks a level and the levels with attention are our reading of the
paper.
"""

from vdm_jax.systems import vdm


def get_config():
    config = vdm.default_config()
    config.model.channels = 256
    config.data.name = "video_folder"
    config.train.steps = 220_000
    config.train.batch_size = 256
    return config
