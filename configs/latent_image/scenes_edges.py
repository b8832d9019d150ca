"""A ControlNet on the outlines of objects, for the latent image model of scenes' frames.

Command: vdm train --config=latent_image/scenes_edges
         vdm convert --to=diffusers --model=runs/latent_image/scenes_edges --out=DIR --dtype=float16
Hardware: 2 CPU cores.
"""

from vdm_jax.config import load_recipe

get_scenes = load_recipe(__file__, "scenes.py").get_config


def get_config(source="edges"):
    config = get_scenes()
    config.data.extras = (source,)
    config.train.control.source = source
    config.train.control.hint_widths = (8, 16, 32)
    config.train.control.base = "scenes_image"
    config.train.steps = 2000
    config.train.batch_size = 16
    return config
