"""Imagen Video, 32 frames of 40 x 24 to 80 x 48, 1.4B (Ho et al. 2022).

Command: vdm train --config=imagen_video/paper/ssr_80x48 --workdir=DIR
Hardware: a TPU pod; vdm compile --config=… shows what fits. The paper's is not given.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.paper_config("ssr_80x48")
    config.model.channels = 408
    config.model.channel_mult = (1, 2, 3, 4)
    config.model.num_res_blocks = (2, 3, 3, 3)
    config.model.attention_levels = (2, 3)
    return config
