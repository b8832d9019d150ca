"""Lumiere for moving shapes: what its models have in common."""

from ml_collections import ConfigDict

from vdm_jax.config import load_recipe
from vdm_jax.systems import lumiere

two_cores = load_recipe(__file__, "../../_two_cores.py").two_cores
about_bilinear = load_recipe(__file__, "../../imagen_video/tiny/_recipe.py").about_bilinear


def tiny_base() -> ConfigDict:
    """The image model of 16 x 16 pixels for moving shapes: four frames of a clip a step, each on
    its own."""
    config = _tiny(lumiere.stage_config("t2i_base", (4, 16, 16), fps=24.0))
    config.process.logsnr_shift = -2.0
    config.train.steps = 5000
    config.sample.steps = 64
    config.sample.guidance = 2.0
    return config


def tiny_ssr() -> ConfigDict:
    """The image model that makes 32 x 32 of 16 x 16 pixels."""
    config = _tiny(lumiere.stage_config("t2i_ssr", (4, 32, 32), low_res=(4, 16, 16), fps=24.0))
    about_bilinear(config)
    # Beyond half of the times the condition is almost pure noise; sampling uses a tenth of them.
    config.stage.max_augmentation = 0.5
    config.train.steps = 3000
    config.sample.steps = 32
    config.sample.augmentation = 3.0
    return config


def whole_clip(config: ConfigDict) -> ConfigDict:
    """Makes a tiny image model's configuration that of its space-time U-Net of 32 frames."""
    lumiere.inflate(config, resize=(0,))
    _, *size = config.stage.shape
    config.stage.shape = (32, *size)
    if config.stage.low_res:
        config.stage.low_res = (32, *config.stage.low_res[1:])
    config.stage.frame_strides = ()
    config.model.temporal_depth = 2
    return config


def _tiny(config: ConfigDict) -> ConfigDict:
    two_cores(config)
    size = config.stage.shape[1]
    config.stage.frame_strides = (8,)
    config.model.channels = 64
    config.model.channel_mult = (1, 2)
    config.model.num_res_blocks = (1, 1)
    config.model.attention_levels = (0, 1)
    config.model.patch_size = 4
    config.model.coordinates = True
    config.text.encoder = "words"
    config.text.max_length = 8
    config.text.vocabulary_size = 16
    config.data.name = "moving_shapes"
    config.data.config = f"{size}x{size}x32"
    config.data.num_frames = 32
    config.data.image_size = config.data.image_width = size
    return config
