"""Make-A-Video on scenes, ↑F: 4 frames to 16 frames of 64 x 64, 5 from one to the next.

Command: vdm train --config=make_a_video/tiny/interpolation --workdir=DIR/interpolation \\
    --config.train.init_from=DIR/decoder
Hardware: 2 CPU cores; the whole cascade: make_a_video/tiny/cascade.
"""

from vdm_jax.config import load_recipe
from vdm_jax.systems import make_a_video

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    frames = (recipe.GIVEN - 1) * recipe.SKIP + 1
    config = recipe.on_clips(recipe.decoder(make_a_video.INTERPOLATION, frames))
    config.model.train_only = f"{recipe.VIDEO}|^masked_video_conv/"
    config.interpolation.update({"given": recipe.GIVEN, "skip": recipe.SKIP})
    config.train.batch_size = 2
    config.train.steps = 150
    config.sample.guidance = 1.0
    config.sample.steps = 16
    config.sample.batch_size = 4
    return config.lock()
