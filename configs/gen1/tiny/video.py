"""Gen-1 on scenes, phase 2: layers over frames, clips of 8 x 64 x 64 with images beside them.

Command: vdm train --config=gen1/tiny/video --workdir=DIR/video --config.train.init_from=DIR/content
Hardware: 2 CPU cores, about 5 minutes.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.tiny_config(frames=8)
    config.data.image_frames = 2
    config.train.steps = 150
    config.train.batch_size = 4
    return config
