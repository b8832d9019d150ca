"""Make-A-Video, D with layers over frames: 16 frames of 64 x 64, at 1 to 30 frames a second
(Singer et al. 2022, section 3.2).

Command: vdm train --config=make_a_video/paper/decoder --workdir=DIR/decoder \\
    --config.model.image_encoder=FOLDER --config.data.data_dir=FOLDER_OF_VIDEOS \\
    --config.train.init_from=DIR/decoder_image
Hardware: the paper does not give it.
"""

from vdm_jax.config import load_recipe
from vdm_jax.systems import make_a_video

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.decoder(make_a_video.DECODER, recipe.FRAMES)
    config.model.temporal = True
    # At 1 frame a second 15 * 30 + 1 frames are needed; the clip must divide into 16.
    config.data.num_frames = 29 * recipe.FRAMES
    config.data.fps = config.stage.data_fps = 30.0
    config.stage.frame_strides = (recipe.SKIP, 1, 2, 3, 6, 10, 15, 30)  # the first is sampled
    return config.lock()
