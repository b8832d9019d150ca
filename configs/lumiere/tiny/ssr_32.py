"""Lumiere on moving shapes: clips of 16 x 16 to 32 x 32, in windows of 8 frames that overlap.

Command: vdm train --config=lumiere/tiny/ssr_32 --workdir=DIR/ssr_32 \\
             --config.train.init_from=DIR/t2i_ssr
Hardware: 2 CPU cores are enough.

Trained on 8 frames in a row. Sampled on all 32: at each step what the windows say of a frame is
averaged.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.whole_clip(recipe.tiny_ssr())
    config.stage.name = "ssr_32"
    config.stage.crop = (8, 32, 32)
    config.sample.window = 8
    # Windows begin at even and odd frames in turn: frames within a pair, which the network halves
    # and doubles, are more alike than frames of two pairs.
    config.sample.window_overlap = 3
    config.train.steps = 3000
    return config
