"""Imagen Video, 32 frames of 80 x 48 to 320 x 192, 1.2B (Ho et al. 2022).

Command: vdm train --config=imagen_video/paper/ssr_320x192 --workdir=DIR
Hardware: a TPU pod; vdm compile --config=… shows what fits. The paper's is not given.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.paper_config("ssr_320x192")
    config.model.channels = 304
    config.model.channel_mult = (1, 2, 4, 8)
    config.model.num_res_blocks = (2, 2, 4, 4)
    config.model.attention_levels = (3,)
    config.model.skips = "level"
    config.model.patch_size = 2
    return config
