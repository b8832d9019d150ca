"""Imagen Video, the base: text to 16 frames of 40 x 24 at 3 fps, 5.6B (Ho et al. 2022).

Command: vdm train --config=imagen_video/paper/base_40x24 --workdir=DIR
Hardware: a TPU pod; vdm compile --config=… shows what fits. The paper's is not given.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.paper_config("base_40x24")
    config.model.channels = 784
    config.model.channel_mult = (1, 2, 3, 4)
    config.model.num_res_blocks = (3, 3, 3, 3)
    config.model.attention_levels = (0, 1, 2, 3)
    config.model.head_dim = 128
    config.model.embedding_dim = 2048
    return config
