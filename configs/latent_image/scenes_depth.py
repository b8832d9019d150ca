"""A ControlNet on depth, for the latent image model of scenes' frames.

Command: vdm train --config=latent_image/scenes_depth
         vdm convert --to=diffusers --model=runs/latent_image/scenes_depth --out=DIR --dtype=float16
Hardware: 2 CPU cores.
"""

from vdm_jax.config import load_recipe


def get_config():
    return load_recipe(__file__, "scenes_edges.py").get_config("depth")
