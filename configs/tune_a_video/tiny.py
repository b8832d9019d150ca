"""Tune-A-Video with the small image model of scenes, 8 x 64 x 64.

Command: vdm tune --input=clip.mp4 --prompt="a cat on the left of a green meadow" \\
    --edit="a dog on the left of a green meadow"
Hardware: 2 CPU cores.

The network is a thousandth of Stable Diffusion's, so its learning rate is larger. Guidance is
larger than the image model's own, as the paper's is.
"""

from vdm_jax.config import load_recipe
from vdm_jax.systems import tune_a_video

image_model = load_recipe(__file__, "../latent_image/scenes.py")


def get_config():
    recipe = tune_a_video.default_config()
    recipe.model.dtype = "float32"
    config = tune_a_video.inflated_config(image_model.get_config(), recipe)
    config.train.tuning.base = "scenes_image"
    config.data.num_frames = 8
    config.data.frame_stride = 1
    config.train.steps = 200
    config.train.learning_rate = 3e-4
    config.sample.guidance = 4.0
    return config
