"""Gen-1, phase 1: pixels attend to an image's embedding in the place of a text
(Esser et al. 2023, section 3.5).

Command: vdm train --config=gen1/paper/content --workdir=DIR/content \\
    --config.train.init_from=FOLDER --config.model.autoencoder=FOLDER/vae \\
    --config.model.image_encoder=CLIP --config.data.data_dir=FOLDER_OF_VIDEOS
Hardware: the paper does not give it.

FOLDER is Stable Diffusion 1.5's. CLIP is a folder of CLIP ViT-L/14 with image_encoder/ and
feature_extractor/.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.paper_config(frames=1, temporal=False)
    config.train.steps = 15_000
    config.train.batch_size = 1024
    return config
