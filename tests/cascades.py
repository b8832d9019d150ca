"""Imagen Video's two cascades: the paper's, and the one for moving shapes of `configs/`; and the
smallest network that a stage can have."""

from vdm_jax.config import config_folder, load_recipe
from vdm_jax.systems import imagen_video

RECIPE = load_recipe(str(config_folder() / "imagen_video" / "tiny" / "cascade.py"), "_recipe.py")
PAPER, TINY = imagen_video.PAPER, RECIPE.TINY
CASCADES = {"paper": PAPER, "tiny": TINY}
NETWORK = {  # fields of `config.model`
    "channels": 8,
    "channel_mult": (1,),
    "num_res_blocks": (1,),
    "attention_levels": (0,),
    "temporal_levels": (0,),
    "head_dim": 4,
    "norm_groups": 2,
    "patch_size": 4,
    "embedding_dim": 16,
    "dtype": "float32",
}
# For tests to which it does not matter what the network is: half the time to compile.
LIGHT = {**NETWORK, "attention_levels": (), "temporal_levels": ()}
