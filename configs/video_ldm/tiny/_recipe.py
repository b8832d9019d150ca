"""Video LDM on scenes: what its stages have in common."""

from ml_collections import ConfigDict

from vdm_jax.config import load_recipe
from vdm_jax.systems import video_ldm

image_model = load_recipe(__file__, "../../latent_image/scenes.py")
few_updates = load_recipe(__file__, "../../_two_cores.py").few_updates

DATA = "64x64x65"
FPS = 30.0  # so that the paper's 1.875, 7.5 and 30 frames a second are every 16th, 4th and 1st
FRAMES = 5


def clips(strides: tuple[int, ...]) -> ConfigDict:
    """A model of 5 frames of 64 x 64, taken by `strides` from the data's; the first is sampled.

    Its U-Net is inflated from the image model of scenes.
    """
    image = image_model.get_config()
    config = video_ldm.default_config().unlock()
    config.model, config.text, config.sample = image.model, image.text, image.sample
    config.temporal.max_frames = 16
    config.stage.shape = (FRAMES, 64, 64)
    config.stage.data_fps = FPS
    config.stage.frame_strides = strides
    config.data.update({"name": "scenes", "config": DATA, "num_frames": 65, "workers": 0})
    config.data.update({"image_size": 64, "image_width": 64})
    config.train.batch_size = 8
    few_updates(config)
    config.sample.batch_size = 16
    return config
