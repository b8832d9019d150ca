"""Lumiere at the paper's size: what its models have in common."""

from ml_collections import ConfigDict

from vdm_jax.systems import lumiere


def paper_base() -> ConfigDict:
    """The image model of 128 x 128 at the paper's size."""
    config = _paper(lumiere.stage_config("t2i_base", (1, 128, 128), fps=16.0), frames=80, size=128)
    config.model.channels = 256
    config.model.num_res_blocks = (2, 3, 3, 3)
    config.model.attention_levels = (1, 2, 3)
    config.sample.guidance = 8.0
    return config


def paper_ssr() -> ConfigDict:
    """The image model that makes 1024 x 1024 of 128 x 128."""
    config = lumiere.stage_config("t2i_ssr", (1, 1024, 1024), low_res=(1, 128, 128), fps=16.0)
    config = _paper(config, frames=80, size=1024)
    config.model.channels = 128
    config.model.num_res_blocks = (2, 2, 4, 4)
    # Convolutions only over space: it is trained on parts of frames.
    config.model.attention_levels = (3,)
    config.model.spatial_attention = "none"
    config.model.norm_groups = 0
    config.model.patch_size = 4
    config.sample.augmentation = 3.0
    return config


def _paper(config: ConfigDict, *, frames: int, size: int) -> ConfigDict:
    config.stage.frame_strides = (1,)
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.model.head_dim = 64
    config.model.remat = "full"
    config.text.encoder = "t5_xxl"
    config.text.max_length = 128
    config.data.name = "video_folder"
    config.data.num_frames = frames
    config.data.image_size = config.data.image_width = size
    config.data.fps = 16.0
    config.train.batch_size = 256
    config.train.learning_rate = 1e-4
    config.train.warmup_steps = 10_000
    config.train.steps = 500_000
    config.sample.threshold = "dynamic"
    # A clip a chip of a host: docs/pods.md.
    config.sample.batch_size = 4
    return config
