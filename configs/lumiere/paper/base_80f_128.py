"""Lumiere's base: 80 frames of 128 x 128 at 16 frames a second, in one pass.

Command: vdm train --config=lumiere/paper/base_80f_128 \\
             --workdir=DIR/base_80f_128 --config.train.init_from=DIR/t2i_base
Hardware: a pod; see docs/pods.md.

Frames are halved wherever height and width are: 10 are left at the coarsest level.
"""

from vdm_jax.config import load_recipe
from vdm_jax.systems import lumiere

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = lumiere.inflate(recipe.paper_base(), resize=(0, 1, 2))
    config.stage.name = "base_80f_128"
    config.stage.shape = (80, 128, 128)
    config.stage.frame_strides = ()
    config.stage.masks = ("none", "first_frame", "inpaint", "outpaint", "cinemagraph")
    config.model.temporal_depth = 2
    # A batch at once takes 179 GiB of a v5p's 96; in halves it fits (docs/pods.md).
    config.train.accumulate = 2
    return config
