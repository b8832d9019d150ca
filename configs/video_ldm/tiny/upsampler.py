"""Video LDM on scenes, the 4 x upsampler: clips of 64 x 64 to 256 x 256 pixels, by patches of 8
frames, with layers over frames.

Command: vdm train --config=video_ldm/tiny/upsampler --workdir=DIR/upsampler \\
             --config.train.init_from=DIR/upsampler_image
Hardware: 2 CPU cores.

It is a super-resolution stage of pixels, as Make-A-Video's; in the paper one of its two upsamplers
is. All layers are trained.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_upsampler.py")


def get_config():
    config = recipe.upsampler(temporal=True)
    config.train.steps = 300
    config.train.batch_size = 4
    return config.lock()
