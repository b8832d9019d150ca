"""Stable Video Diffusion, stage 1: Stable Diffusion 2.1 trained on to EDM's noise levels, images of
256 x 384 (Blattmann et al. 2023, appendix D).

Command: vdm train --config=stable_video/paper/image_edm --workdir=DIR/image_edm \\
    --config.train.init_from=FOLDER_OF_SD_2.1 --config.model.autoencoder=FOLDER_OF_SD_2.1/vae \\
    --config.data.data_dir=FOLDER_OF_CAPTIONED_IMAGES_OR_VIDEOS
Hardware: the paper's is 48 nodes of 8 A100 for its largest stage; no time is given for this one.

The distribution of noise levels is EDM's own; the paper names none for this stage.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.with_text(recipe.paper_config(256, 384, frames=1))
    config.model.temporal = False
    config.sample.update({"fps": 0.0, "motion_bucket": 0.0})
    config.process.P_mean = -1.2
    config.process.P_std = 1.2
    config.train.steps = 31_000
    config.train.batch_size = 1536
    return config
