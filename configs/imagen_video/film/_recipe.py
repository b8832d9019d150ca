"""Imagen Video's super-resolution stages for a real film: what they have in common."""

from ml_collections import ConfigDict

from vdm_jax.config import load_recipe

tiny_config = load_recipe(__file__, "../tiny/_recipe.py").tiny_config


def film_config(name: str) -> ConfigDict:
    """A super-resolution stage without text for a folder of video files: `ssr_64`, 8 frames of 32 x
    32 to 64 x 64 pixels, or `tsr`, 8 frames of 32 x 32 to 16, of a film's every second frame."""
    shapes = {"ssr_64": ((8, 64, 64), (8, 32, 32)), "tsr": ((16, 32, 32), (8, 32, 32))}
    config = tiny_config("ssr_32")
    config.stage.name = name
    config.stage.shape, config.stage.low_res = shapes[name]
    config.stage.data_fps = 12.0
    config.stage.fill = "blend"
    # The likeliest deviations, measured: of the film's pixels about bilinear ones, which are exact
    # where it is flat, and its frames about blended ones, which are exact where nothing moves.
    # What is refined are real frames, so there is little noise on them in training or none: up to a
    # tenth of the times its deviation is up to 0.16 in [-1, 1], many times that of most frames from
    # a blend. Steps are as measured: more are worse by pixels.
    if name == "ssr_64":
        config.stage.residual, config.stage.residual_of_contrast = 0.005, 0.9
        config.stage.max_augmentation = 0.1
        config.sample.steps = 2
    else:
        config.stage.residual, config.stage.residual_of_acceleration = 0.005, 0.35
        config.stage.max_augmentation = 0.0
        config.sample.steps = 1
        # One step asks at nothing but noise: that is what most of training is about.
        config.process.logsnr_shift = -2.0
    config.model.channels = 48
    config.model.channel_mult = (1, 2)
    config.model.num_res_blocks = (1, 1)
    config.model.attention_levels = ()
    config.model.temporal_levels = (0, 1)
    # Patches of 4 x 4 of z and the condition are 96 values: of frames of 32 x 32, smaller ones fit.
    config.model.patch_size = {"ssr_64": 4, "tsr": 2}[name]
    config.text.encoder = "none"
    config.data.name, config.data.config = "video_folder", ""
    frames, size, _ = config.stage.shape
    config.data.num_frames, config.data.image_size = frames, size
    config.data.image_width = size
    config.data.frame_stride = 2
    # Few clips, of which there is no text that says where left is: every way to see them counts.
    config.data.augment = ("start", "mirror", "reverse")
    config.train.batch_size = 16
    config.train.learning_rate = 1e-3
    config.train.steps = 4000
    return config
