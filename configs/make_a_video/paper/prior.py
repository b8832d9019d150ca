"""Make-A-Video, the prior P: a text to the embedding of an image by CLIP's ViT-L/14 (Singer et
al. 2022, section 3.1).

Command: vdm train --config=make_a_video/paper/prior --workdir=DIR/prior \\
    --config.model.image_encoder=FOLDER --config.data.data_dir=FOLDER_OF_CAPTIONED_IMAGES
Hardware: the paper does not give it.
"""

from vdm_jax.config import load_recipe
from vdm_jax.systems import make_a_video

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.at_scale(make_a_video.default_config(make_a_video.PRIOR))
    config.train.batch_size = 4096
    return config.lock()
