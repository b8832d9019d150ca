"""Gen-1 on scenes, phase 3: structure at t_s = 0.

Command: vdm train --config=gen1/tiny/structure --workdir=DIR/structure \\
    --config.train.init_from=DIR/video
Hardware: 2 CPU cores, about 9 minutes.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.with_structure(recipe.tiny_config(frames=8), 0)
    config.data.image_frames = 2
    config.train.steps = 250
    config.train.batch_size = 4
    return config
