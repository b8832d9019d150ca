"""Gen-1 on scenes, phase 4: structure at every t_s from 0 to 7.

Command: vdm train --config=gen1/tiny/levels --workdir=DIR/levels \\
    --config.train.init_from=DIR/structure
    vdm edit restructure --model=DIR/levels --input=clip.npz --depth=depth.npz --image=style.png
Hardware: 2 CPU cores, about 7 minutes.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.with_structure(recipe.tiny_config(frames=8), 7)
    config.data.image_frames = 2
    config.train.steps = 200
    config.train.batch_size = 4
    return config
