"""Gen-1, phase 3: structure at t_s = 0 (Esser et al. 2023, section 3.5).

Command: vdm train --config=gen1/paper/structure --workdir=DIR/structure \\
    --config.train.init_from=DIR/video --config.model.autoencoder=FOLDER/vae \\
    --config.model.image_encoder=CLIP --config.data.data_dir=FOLDER_OF_VIDEOS \\
    --config.model.depth=FOLDER_OF_ESTIMATOR
Hardware: the paper does not give it.

FOLDER is Stable Diffusion 1.5's. CLIP is a folder of CLIP ViT-L/14 with image_encoder/ and
feature_extractor/. The estimator is Depth Anything V2 small.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.with_structure(recipe.paper_config(), 0)
    config.train.steps = 25_000
    return config
