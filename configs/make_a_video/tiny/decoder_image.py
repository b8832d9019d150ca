"""Make-A-Video on scenes, the decoder D: the embedding of a frame to the frame, 64 x 64 pixels.

Command: vdm train --config=make_a_video/tiny/decoder_image --workdir=DIR/decoder_image
Hardware: 2 CPU cores; the whole cascade: make_a_video/tiny/cascade.

It starts from the image model of scenes. What attends to the text there attends to the embedding.
"""

from vdm_jax.config import load_recipe
from vdm_jax.systems import make_a_video

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.decoder(make_a_video.DECODER, 1)
    config.model.train_only = recipe.EMBEDDING
    config.train.init_from = "scenes_image"
    config.train.batch_size = 16
    config.train.steps = 500
    return config.lock()
