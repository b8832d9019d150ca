"""Make-A-Video, the interpolation: 16 frames to 76 of 64 x 64 (Singer et al. 2022, section 3.3).

Command: vdm train --config=make_a_video/paper/interpolation --workdir=DIR/interpolation \\
    --config.model.image_encoder=FOLDER --config.data.data_dir=FOLDER_OF_VIDEOS \\
    --config.train.init_from=DIR/decoder
Hardware: the paper does not give it.
"""

from vdm_jax.config import load_recipe
from vdm_jax.systems import make_a_video

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.decoder(make_a_video.INTERPOLATION, recipe.LONG)
    config.interpolation.update({"given": recipe.FRAMES, "skip": recipe.SKIP})
    config.data.fps = config.stage.data_fps = 30.0
    config.train.batch_size = 128
    return config.lock()
