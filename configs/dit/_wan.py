"""What the configurations of Wan 2.1's networks have in common."""

from ml_collections import ConfigDict

from vdm_jax.systems import video_dit


def published(height: int, width: int) -> ConfigDict:
    """Wan 2.1's network of 1.3 billion parameters on clips of 81 frames at 16 frames a second."""
    config = video_dit.default_config()
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.model.scheduler.flow_shift = 3.0 if height < 720 else 5.0
    config.model.masks = ("none", "none", "beginning", "ends")
    config.data.name = "video_folder"
    config.data.num_frames = 81
    config.data.image_size, config.data.image_width = height, width
    config.data.fps = 16.0
    config.train.steps = 100_000
    config.train.batch_size = 64
    config.train.learning_rate = 1e-4
    config.train.weight_decay = 1e-2
    return config
