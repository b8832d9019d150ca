"""Imagen Video on moving shapes, 16 frames of 32 x 32 to 32 frames.

Command: python -m launch.train --config=configs/imagen_video/tiny/tsr_24fps.py --workdir=DIR
Hardware: 2 CPU cores are enough; the whole cascade: configs/imagen_video/tiny/cascade.py.
"""

from vdm_jax.systems import imagen_video


def get_config():
    config = imagen_video.tiny_config("tsr_24fps")
    config.model.channels = 64
    config.model.patch_size = 4
    config.train.steps = 2500
    return config
