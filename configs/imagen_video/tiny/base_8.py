"""Imagen Video on moving shapes, the base: text to 4 frames of 8 x 8.

Command: python -m launch.train --config=configs/imagen_video/tiny/base_8.py --workdir=DIR
Hardware: 2 CPU cores are enough; the whole cascade: configs/imagen_video/tiny/cascade.py.
"""

from vdm_jax.systems import imagen_video


def get_config():
    config = imagen_video.tiny_config("base_8")
    config.model.channels = 96
    config.model.num_res_blocks = (2,)
    config.model.patch_size = 2
    config.model.coordinates = True
    config.model.frame_positions = True
    # MiniLM says faintly which of two objects a word is about: its neighbours say it clearly.
    config.model.text_kernel = 7
    config.process.logsnr_shift = -2.0
    config.train.steps = 12_000
    config.train.batch_size = 32
    return config
