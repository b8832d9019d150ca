"""Video LDM on scenes, prediction: 5 frames of 64 x 64, 1.875 a second, of a text and of 0, 1 or 2
frames that come before.

Command: vdm data prepare --config=video_ldm/tiny/key_frames
         vdm data embed --config=video_ldm/tiny/key_frames
         vdm train --config=video_ldm/tiny/key_frames --workdir=DIR/key_frames
         vdm edit extend --model=DIR/key_frames --method=trained --context=2 --frames=8 \\
             --prompt="a cat moving right over a green meadow"
Hardware: 2 CPU cores.

It starts from the image model of scenes, whose layers stay fixed.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.clips((16,))
    config.stage.masks = ("none", "first_frame", "first_two_frames")
    config.train.init_from = "scenes_image"
    config.train.steps = 400
    return config.lock()
