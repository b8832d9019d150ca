"""What Lumiere is compared with, first half: 8 keyframes of 16 x 16, a quarter of the clip's.

Command: vdm train --config=lumiere/tiny/keyframes --workdir=DIR/keyframes
Hardware: 2 CPU cores are enough; with tsr: lumiere/tiny/keyframes_cascade.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.tiny_base()
    config.stage.name = "keyframes"
    config.stage.shape = (8, 16, 16)
    config.stage.frame_strides = ()
    config.model.channels = 48  # both halves together are as large as the space-time U-Net
    config.model.temporal = "attention"
    config.model.temporal_levels = (0, 1)
    config.model.frame_positions = True
    return config
