"""Video LDM on scenes, interpolation: 3 frames between two of 64 x 64, by one model to 7.5 and to
30 frames a second.

Command: vdm train --config=video_ldm/tiny/interpolation --workdir=DIR/interpolation \\
             --config.train.init_from=DIR/key_frames
         vdm edit interpolate --model=DIR/interpolation --method=trained --factor=4 --fps=7.5 \\
             --input=KEY_FRAMES --out=DIR/7.5
         vdm edit interpolate --model=DIR/interpolation --method=trained --factor=4 --fps=30 \\
             --input=DIR/7.5 --out=DIR/30
Hardware: 2 CPU cores.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.clips((4, 1))
    config.stage.masks = ("first_and_last",)
    config.train.steps = 400
    config.sample.steps = 16
    config.sample.guidance = 1.0
    return config.lock()
