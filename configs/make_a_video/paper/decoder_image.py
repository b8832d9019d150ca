"""Make-A-Video, the decoder D: the embedding of an image to 64 x 64 pixels (Singer et al. 2022,
section 3.1).

Command: vdm train --config=make_a_video/paper/decoder_image --workdir=DIR/decoder_image \\
    --config.model.image_encoder=FOLDER --config.data.data_dir=FOLDER_OF_IMAGES
Hardware: the paper does not give it.
"""

from vdm_jax.config import load_recipe
from vdm_jax.systems import make_a_video

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.decoder(make_a_video.DECODER, 1)
    config.train.batch_size = 2048
    return config.lock()
