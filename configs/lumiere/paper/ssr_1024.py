"""Lumiere's super-resolution model: 128 x 128 to 1024 x 1024 pixels, in windows of 16 frames.

Command: vdm train --config=lumiere/paper/ssr_1024 --workdir=DIR/ssr_1024 \\
             --config.train.init_from=DIR/t2i_ssr
Hardware: a pod; see docs/pods.md.

Its image model is lumiere/paper/t2i_ssr. Windows overlap by 2 frames; their length, and
that it is trained on crops of 256 x 256, is our choice.
"""

from vdm_jax.config import load_recipe
from vdm_jax.systems import lumiere

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = lumiere.inflate(recipe.paper_ssr(), resize=(0, 1))
    config.stage.name = "ssr_1024"
    config.stage.shape = (80, 1024, 1024)
    config.stage.low_res = (80, 128, 128)
    config.stage.frame_strides = ()
    config.stage.crop = (16, 256, 256)
    config.sample.window = 16
    config.sample.window_overlap = 2
    return config
