"""Stable Video Diffusion on scenes: what its small stages have in common."""

from ml_collections import ConfigDict

from vdm_jax.config import load_recipe
from vdm_jax.systems import stable_video
from vdm_jax.weights import latent_unet
from vdm_jax.weights import stable_video as weights

image_model = load_recipe(__file__, "../../latent_image/scenes.py")


FRAMES, STRIDES = 6, (1, 2, 3)  # of 16 frames, so 8, 4 and 2.7 frames a second


def tiny_config() -> ConfigDict:
    """A stage of single frames whose U-Net is that of the image model of scenes.

    Its text is that model's. An image encoder of this size does not exist, so pixels attend to the
    text in all stages.
    """
    image = image_model.get_config()
    config = stable_video.default_config().unlock()
    network = latent_unet.from_config(image.model.unet.to_dict(), image_model.__file__)
    config.model.unet = ConfigDict(weights.inflated_config(network))
    config.model.autoencoder = image.model.autoencoder
    config.model.dtype = "float32"
    config.model.temporal = False
    config.model.still = False
    config.model.context = "text"
    config.model.decode_frames = 4
    config.text = image.text
    config.data.update(image.data.to_dict())
    config.data.num_frames = 1
    config.data.image_width = image.data.image_size
    config.train.batch_size = 6
    config.train.learning_rate = 5e-4
    config.train.schedule = "cosine"
    config.train.warmup_steps = 40
    config.train.ema_decay = 0.99
    config.train.log_every = 20
    config.train.sample_every = 0
    config.checkpoint.every = 100
    config.sample.update({"augmentation": 0.0, "fps": 0.0, "motion_bucket": 0.0})
    config.sample.update({"guidance": 2.0, "first_guidance": 2.0})
    config.sample.steps = 20
    config.sample.batch_size = 4
    return config


def clip_config() -> ConfigDict:
    """`tiny_config` with layers over frames, for clips at several frame rates."""
    config = tiny_config()
    config.model.temporal = True
    config.model.frames = FRAMES
    config.model.frame_strides = STRIDES
    config.data.num_frames = 16
    # Rendered objects are small: at 8 frames a second nearly all clips change by less.
    config.condition.full_motion = 0.08
    config.sample.fps = 8.0
    config.sample.motion_bucket = 80.0
    return config
