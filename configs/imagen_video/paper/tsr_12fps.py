"""Imagen Video, 32 frames of 320 x 192 at 6 fps to 64 at 12 fps, 780M (Ho et al. 2022).

Command: vdm train --config=imagen_video/paper/tsr_12fps --workdir=DIR
Hardware: a TPU pod; vdm compile --config=… shows what fits. The paper's is not given.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.paper_config("tsr_12fps")
    config.model.channels = 248
    config.model.channel_mult = (1, 2, 4, 8)
    config.model.num_res_blocks = (2, 2, 4, 4)
    config.model.attention_levels = (3,)
    config.model.spatial_attention = "none"
    config.model.skips = "level"
    config.model.patch_size = 2
    return config
