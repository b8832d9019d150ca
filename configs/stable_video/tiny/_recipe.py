"""Stable Video Diffusion on scenes: what its small stages have in common."""

from ml_collections import ConfigDict

from vdm_jax.config import load_recipe
from vdm_jax.systems import stable_video
from vdm_jax.weights import latent_unet
from vdm_jax.weights import stable_video as weights

image_model = load_recipe(__file__, "../../latent_image/scenes.py")


def tiny_config(frames: int) -> ConfigDict:
    """A stage whose U-Net is inflated from the image model of scenes.

    Its text is that model's. An image encoder of this size does not exist, so pixels attend to the
    text in all stages.
    """
    image = image_model.get_config()
    config = stable_video.default_config().unlock()
    network = latent_unet.from_config(image.model.unet.to_dict(), image_model.__file__)
    config.model.unet = ConfigDict(weights.inflated_config(network))
    config.model.autoencoder = image.model.autoencoder
    config.model.dtype = "float32"
    config.model.still = False
    config.model.context = "text"
    config.model.decode_frames = 4
    config.text = image.text
    config.data.update(image.data.to_dict())
    config.data.num_frames = frames
    config.data.image_width = image.data.image_size
    # Rendered objects are small: this is the mean change from frame to frame of fast ones.
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
