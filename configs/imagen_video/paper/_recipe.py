"""Imagen Video's cascade at the paper's size: what its stages have in common."""

from ml_collections import ConfigDict

from vdm_jax.systems import imagen_video

# The paper oscillates the guidance of the base and of the first two SSR models. How many steps come
# before that is not given.
OSCILLATING = {"base_40x24": 64, "ssr_80x48": 32, "ssr_320x192": 32}


def paper_config(name: str) -> ConfigDict:
    """The settings that the paper's stages share. Each configuration adds its network's size.

    The paper gives resolutions, frame rates, parameters and steps; batch, learning rate and mesh
    are ours, as are channels and blocks. Clips are read from a folder of captioned videos, whose
    captions T5-XXL has embedded beforehand (`vdm data embed`).
    """
    config = imagen_video.stage_config(imagen_video.PAPER, name)
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.model.head_dim = 64
    config.model.remat = "full"
    config.model.embedding_dim = 1024
    config.text.encoder = "t5_xxl"
    config.text.max_length = 128
    config.data.image_frames = 8
    config.train.batch_size = 256
    config.train.learning_rate = 1e-4
    config.train.warmup_steps = 10_000
    config.train.steps = 500_000
    # A clip a chip of a host: docs/pods.md.
    config.sample.batch_size = 4
    config.sample.oscillate_after = OSCILLATING.get(name, 0)
    return config
