"""Make-A-Video, super-resolution of each frame, 256 x 256 to 768 x 768, from the same noise
(Singer et al. 2022, section 3.2).

Command: vdm train --config=make_a_video/paper/sr_h --workdir=DIR/sr_h \\
    --config.data.data_dir=FOLDER_OF_IMAGES
Hardware: the paper does not give it.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    shape, low_res = (recipe.LONG, 768, 768), (recipe.LONG, 256, 256)
    config = recipe.super_resolution(shape, low_res, temporal=False)
    config.sample.shared_noise = True
    return config.lock()
