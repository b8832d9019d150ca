"""Video LDM on scenes, the 4 x upsampler of images: 64 x 64 to 256 x 256 pixels, by patches.

Command: vdm data prepare --config=video_ldm/tiny/upsampler_image
         vdm train --config=video_ldm/tiny/upsampler_image --workdir=DIR/upsampler_image
Hardware: 2 CPU cores.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_upsampler.py")


def get_config():
    config = recipe.upsampler(temporal=False)
    config.train.steps = 300
    return config.lock()
