"""Wan 2.1's transformer of 1.4 billion parameters (published as 1.3 B) at 480 x 832.

Command: vdm data embed --config=dit/wan_1_3b --config.data.data_dir=FOLDER_OF_CAPTIONED_VIDEOS \\
    --config.text.weights=FOLDER_OF_WAN
         vdm train --config=dit/wan_1_3b --workdir=DIR \\
    --config.model.autoencoder=FOLDER_OF_WAN/vae \\
    --config.data.data_dir=FOLDER_OF_CAPTIONED_VIDEOS [--config.train.init_from=FOLDER_OF_WAN]
Hardware: 64 chips of v5p or the like; nobody has trained it with this code. vdm compile says
whether it fits: docs/dit.md has the commands.
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_wan.py")


def get_config():
    return recipe.published(480, 832)
