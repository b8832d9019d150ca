"""Gen-1, phase 2: layers over frames, clips with images beside them
(Esser et al. 2023, section 3.5).

Command: vdm train --config=gen1/paper/video --workdir=DIR/video \\
    --config.train.init_from=DIR/content --config.model.autoencoder=FOLDER/vae \\
    --config.model.image_encoder=CLIP --config.data.data_dir=FOLDER_OF_VIDEOS
Hardware: the paper does not give it.

FOLDER is Stable Diffusion 1.5's. CLIP is a folder of CLIP ViT-L/14 with image_encoder/ and
feature_extractor/.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_recipe.py")


def get_config():
    config = recipe.paper_config()
    config.train.steps = 75_000
    return config
