"""Imagen Video, 128 frames of 320 x 192 to 1280 x 768, all convolution, 340M (Ho et al. 2022).

Command: vdm train --config=imagen_video/paper/ssr_1280x768 --workdir=DIR
Hardware: a TPU pod; vdm compile --config=… shows what fits. The paper's is not given.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.paper_config("ssr_1280x768")
    config.model.channels = 168
    config.model.channel_mult = (1, 2, 4, 8)
    config.model.num_res_blocks = (2, 2, 4, 4)
    config.model.attention_levels = (3,)
    config.model.spatial_attention = "none"
    config.model.norm_groups = 0
    config.model.embedding_dim = 512
    config.model.skips = "level"
    config.model.patch_size = 4
    config.stage.crop = (256, 256)
    config.data.image_frames = 0
    return config
