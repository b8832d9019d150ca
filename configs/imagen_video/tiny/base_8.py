"""Imagen Video on moving shapes, the base: text to 4 frames of 8 x 8.

Command: vdm train --config=imagen_video/tiny/base_8 --workdir=DIR
Hardware: 7 minutes of a GPU, shared with ten trainings, or 4 hours of 2 CPU cores; the whole
cascade: imagen_video/tiny/cascade.

Most of the time goes into which of two objects moves where, and into shapes of 4 x 4 pixels.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.tiny_config("base_8")
    config.model.channels = 96
    config.model.num_res_blocks = (2,)
    config.model.patch_size = 2
    config.model.coordinates = True
    config.model.frame_positions = True
    # MiniLM says faintly which of two objects a word is about: its neighbours say it clearly.
    config.model.text_kernel = 7
    config.process.logsnr_shift = -2.0
    config.train.steps = 13_000
    config.train.batch_size = 64
    return config
