"""Stable Video Diffusion on scenes: what its small stages have in common."""

from ml_collections import ConfigDict

from vdm_jax.systems import stable_video

FRAMES, SIZE = 8, 64


def tiny_config(frames: int) -> ConfigDict:
    """A stage whose U-Net is that of an image model of scenes. Text is MiniLM's states: an image
    encoder of this size does not exist, so pixels attend to the text in all stages."""
    config = stable_video.default_config().unlock()
    config.model.dtype = "float32"
    config.model.still = False
    config.model.context = "text"
    config.text.encoder = "minilm"
    config.text.max_length = 32
    config.data.name = "scenes"
    config.data.config = "64x64x16"
    config.data.num_frames = frames
    config.data.image_size = config.data.image_width = SIZE
    config.data.workers = 0
    # Of rendered clips the mean change from frame to frame is small: this is the fastest.
    config.condition.full_motion = 0.2
    config.train.batch_size = 8
    config.train.learning_rate = 3e-4
    config.train.warmup_steps = 100
    config.train.ema_decay = 0.998
    config.train.log_every = 50
    config.train.sample_every = 0
    config.checkpoint.every = 500
    config.sample.fps = 8.0
    config.sample.steps = 20
    config.sample.batch_size = 4
    return config
