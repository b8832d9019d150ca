"""Wan 2.1's transformer of 14.3 billion parameters at 720 x 1280.

Command: as wan_1_3b.py, with --config=dit/wan_14b
Hardware: 64 chips of v5p or more; nobody has trained it with this code. The 75,600 tokens of a clip
lie on two chips each (mesh.context).
"""

from vdm_jax.config import load_recipe

recipe = load_recipe(__file__, "_wan.py")


def get_config():
    config = recipe.published(720, 1280)
    config.model.transformer.update(num_attention_heads=40, num_layers=40, ffn_dim=13_824)
    config.mesh.context = 2
    config.train.batch_size = 32
    return config
