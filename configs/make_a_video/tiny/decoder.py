"""Make-A-Video on scenes, D with layers over frames: 4 frames of 64 x 64, at 1.6, 2.7 or 8 frames a
second.

Command: vdm train --config=make_a_video/tiny/decoder --workdir=DIR/decoder \\
    --config.train.init_from=DIR/decoder_image
Hardware: 2 CPU cores; the whole cascade: make_a_video/tiny/cascade.

Clips are read without their captions.
"""

from vdm_jax.config import load_recipe
from vdm_jax.systems import make_a_video

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.on_clips(recipe.decoder(make_a_video.DECODER, recipe.GIVEN))
    config.stage.frame_strides = (recipe.SKIP, 3, 1)  # the first is sampled
    config.train.batch_size = 8
    config.train.steps = 250
    return config.lock()
