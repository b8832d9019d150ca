"""Stable Video Diffusion, stage 2: layers over frames are added and all layers are trained on clips
of 14 x 256 x 384 (Blattmann et al. 2023, appendix D).

Command: vdm train --config=stable_video/paper/video_256x384 --workdir=DIR/video_256x384 \\
    --config.train.init_from=DIR/image_edm --config.model.autoencoder=FOLDER_OF_SD_2.1/vae \\
    --config.data.data_dir=FOLDER_OF_CAPTIONED_VIDEOS
Hardware: the paper's is 48 nodes of 8 A100.

The paper goes on for 100,000 updates at 320 x 576: the same command with
--config.data.image_size=320 --config.data.image_width=576 --config.process.P_mean=0.0
--config.train.steps=100000 and this stage as --config.train.init_from.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.with_text(recipe.paper_config(256, 384, frames=14))
    config.process.P_mean = 0.0
    config.process.P_std = 1.0
    config.train.steps = 150_000
    config.train.batch_size = 1536
    return config
