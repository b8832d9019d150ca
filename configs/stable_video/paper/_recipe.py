"""Stable Video Diffusion at the paper's size: what its stages have in common."""

from ml_collections import ConfigDict

from vdm_jax.systems import stable_video


def paper_config(height: int, width: int, frames: int) -> ConfigDict:
    """The settings that the paper's stages share (Blattmann et al. 2023, appendix D).

    The mesh and the warm-up are ours. Clips are read from a folder of captioned videos at one frame
    rate; the paper's have several.
    """
    config = stable_video.default_config().unlock()
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.model.remat = "full"
    config.data.name = "video_folder"
    config.data.image_size = height
    config.data.image_width = width
    config.data.num_frames = frames
    config.data.fps = config.sample.fps
    config.train.learning_rate = 1e-4
    config.train.ema_decay = 0.9999
    return config


def with_text(config: ConfigDict) -> ConfigDict:
    """Pixels attend to the states of Stable Diffusion 2.1's text encoder, OpenCLIP's H/14."""
    config.model.still = False
    config.model.context = "text"
    config.model.unet.in_channels = 4
    config.sample.augmentation = 0.0
    config.text.encoder = "clip_h"
    config.text.max_length = 77
    return config
