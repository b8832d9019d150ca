"""Imagen Video, 64 frames of 320 x 192 at 12 fps to 128 at 24 fps, 630M (Ho et al. 2022).

Command: vdm train --config=imagen_video/paper/tsr_24fps --workdir=DIR
Hardware: a TPU pod; vdm compile --config=… shows what fits. The paper's is not given.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.paper_config("tsr_24fps")
    config.model.channels = 224
    config.model.channel_mult = (1, 2, 4, 8)
    config.model.num_res_blocks = (2, 2, 4, 4)
    config.model.attention_levels = (3,)
    config.model.spatial_attention = "none"
    config.model.skips = "level"
    config.model.patch_size = 2
    # Its 128 frames at once take 104 GiB of a v5p; in halves they fit (docs/pods.md).
    config.train.accumulate = 2
    return config
