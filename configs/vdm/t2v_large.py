"""VDM text-to-video, the large model: 16 frames of 64 x 64 (Ho et al. 2022, section 4.3).

Command: python -m launch.train --config=configs/vdm/t2v_large.py \
    --workdir=DIR --config.data.data_dir=FOLDER_OF_CAPTIONED_VIDEOS
Hardware: a TPU v4-64 or 32 H100s; the paper names none.

`t2v_small.py` with 256 channels.
"""

from configs.vdm import t2v_small


def get_config():
    config = t2v_small.get_config()
    config.model.channels = 256
    return config
