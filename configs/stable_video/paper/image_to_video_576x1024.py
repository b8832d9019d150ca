"""Stable Video Diffusion, stage 3: image to video on high-quality clips of 14 x 576 x 1024
(Blattmann et al. 2023, section 4.3 and appendix D).

Command: vdm train --config=stable_video/paper/image_to_video_576x1024 --workdir=DIR/stage_3 \\
    --config.train.init_from=DIR/video_256x384 --config.model.autoencoder=FOLDER/vae \\
    --config.model.image_encoder=FOLDER --config.data.data_dir=FOLDER_OF_VIDEOS
Hardware: the paper's is 48 nodes of 8 A100. FOLDER is a published pipeline's: its vae/ has the
decoder that mixes frames.

Own videos: --config.train.init_from=FOLDER goes on from the published model, all parameters
trained; with --config.train.lora.base=FOLDER --config.train.lora.rank=32 in its place low-rank
changes of it are.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.paper_config(576, 1024, frames=14)
    config.train.learning_rate = 3e-5
    config.train.steps = 50_000
    config.train.batch_size = 768
    return config
