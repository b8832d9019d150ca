"""What Lumiere is compared with, second half: 32 frames of 8 keyframes.

Command: vdm train --config=lumiere/tiny/tsr --workdir=DIR/tsr
Hardware: 2 CPU cores are enough; with keyframes: lumiere/tiny/keyframes_cascade.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.tiny_base()
    config.stage.name = "tsr"
    config.stage.shape = (32, 16, 16)
    config.stage.low_res = (8, 16, 16)
    config.stage.frame_strides = ()
    config.stage.max_augmentation = 0.5
    config.model.channels = 48
    config.model.temporal = "convolution"
    config.model.temporal_levels = (0, 1)
    config.process.logsnr_shift = 0.0
    config.sample.steps = 32
    config.sample.guidance = 1.0
    config.sample.augmentation = 3.0
    return config
