"""Gen-1, phase 4: structure at every t_s from 0 to 7 (Esser et al. 2023, section 3.5).

Command: vdm train --config=gen1/paper/levels --workdir=DIR/levels \\
    --config.train.init_from=DIR/structure --config.model.autoencoder=FOLDER/vae \\
    --config.model.image_encoder=CLIP --config.data.data_dir=FOLDER_OF_VIDEOS \\
    --config.model.depth=FOLDER_OF_ESTIMATOR
Hardware: the paper does not give it.

FOLDER is Stable Diffusion 1.5's. CLIP is a folder of CLIP ViT-L/14 with image_encoder/ and
feature_extractor/. The estimator is Depth Anything V2 small.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.with_structure(recipe.paper_config(), 7)
    config.train.steps = 10_000
    return config
