"""Tune-A-Video on one clip of 24 x 512 x 512 with Stable Diffusion 1.4 (Wu et al. 2023, section 4;
figures of the published code).

Command: vdm tune --config=tune_a_video/paper --model=FOLDER --input=clip.mp4 --prompt=TEXT \\
    --edit=TEXT
Hardware: the paper tunes for about 10 minutes on an A100.

FOLDER is Stable Diffusion 1's or 2's, as published.
"""

from vdm_jax.systems import tune_a_video


def get_config():
    config = tune_a_video.default_config()
    config.model.remat = "full"
    return config
