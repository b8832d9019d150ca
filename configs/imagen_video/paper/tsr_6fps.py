"""Imagen Video, 16 frames of 40 x 24 at 3 fps to 32 at 6 fps, 1.7B (Ho et al. 2022).

Command: vdm train --config=imagen_video/paper/tsr_6fps --workdir=DIR
Hardware: a TPU pod; vdm compile --config=… shows what fits. The paper's is not given.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.paper_config("tsr_6fps")
    config.model.channels = 464
    config.model.channel_mult = (1, 2, 3, 4)
    config.model.num_res_blocks = (2, 3, 3, 3)
    config.model.attention_levels = (1, 2, 3)
    config.model.spatial_attention = "none"
    return config
