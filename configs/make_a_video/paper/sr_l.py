"""Make-A-Video, super-resolution over space and time, 76 frames of 64 x 64 to 256 x 256 (Singer
et al. 2022, section 3.2).

Command: vdm train --config=make_a_video/paper/sr_l --workdir=DIR/sr_l \\
    --config.data.data_dir=FOLDER_OF_VIDEOS --config.train.init_from=DIR/sr_l_image
Hardware: the paper does not give it.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    shape, low_res = (recipe.LONG, 256, 256), (recipe.LONG, 64, 64)
    config = recipe.super_resolution(shape, low_res, temporal=True)
    return config.lock()
