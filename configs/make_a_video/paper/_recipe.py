"""Make-A-Video at the paper's resolutions: what its stages have in common.

Frames, resolutions, frame skips and the order of training are the paper's (Singer et al. 2022,
section 3 and appendix A). The sizes of the networks, batch, learning rate and steps are ours.
"""

from ml_collections import ConfigDict

from vdm_jax.systems import make_a_video

FRAMES, SKIP = 16, 5
LONG = (FRAMES - 1) * SKIP + 1  # 76


def decoder(part: str, frames: int) -> ConfigDict:
    """A U-Net of pixels, 64 x 64, that attends to four tokens of CLIP's embedding."""
    config = at_scale(make_a_video.default_config(part, (frames, 64, 64)))
    with config.model.unet.ignore_type():  # one number of heads, or one a level
        config.model.unet.attention_head_dim = (6, 12, 18, 24)
    config.model.unet.update(
        in_channels=3,
        out_channels=3,
        block_out_channels=[384, 768, 1152, 1536],
        layers_per_block=3,
        down_block_types=["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 3,
        up_block_types=["CrossAttnUpBlock2D"] * 3 + ["UpBlock2D"],
        cross_attention_dim=1024,
    )
    config.model.scheduler.update(beta_schedule="linear", beta_start=1e-4, beta_end=0.02)
    config.sample.guidance = 4.0
    return config


def super_resolution(shape, low_res, *, temporal: bool) -> ConfigDict:
    """A fully convolutional U-Net of pixels, trained on crops."""
    config = make_a_video.default_config(make_a_video.SUPER_RESOLUTION, shape)
    at_scale(config)
    config.stage.low_res = low_res
    config.stage.crop = (FRAMES if temporal else 1, shape[1] // 4, shape[2] // 4)
    config.stage.max_augmentation = 0.5
    config.stage.data_fps = 30.0
    config.model.channels = 192
    config.model.channel_mult = (1, 2, 4, 4)
    config.model.attention_levels = ()
    config.model.temporal = "convolution" if temporal else "none"
    config.model.spatial_attention = "none"
    config.model.norm_groups = 0
    config.train.batch_size = 64
    return config


def at_scale(config: ConfigDict) -> ConfigDict:
    """Sets what training on many chips has in common."""
    config.unlock()
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.model.remat = "full"
    config.train.batch_size = 512
    config.train.learning_rate = 1e-4
    config.train.steps = 500_000
    return config
