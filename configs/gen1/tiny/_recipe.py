"""Gen-1 on scenes: what its small phases have in common.

The paper trains all parameters. Here those of the image model that change no feature of a frame are
fixed, so that a trained model is small beside the image model: what is trained are the layers over
frames, what pixels attend to, and the level at which structure enters.
"""

from ml_collections import ConfigDict

from vdm_jax.config import load_recipe
from vdm_jax.systems import gen1

image_model = load_recipe(__file__, "../../latent_image/scenes.py")
few_updates = load_recipe(__file__, "../../_two_cores.py").few_updates
BASE = "scenes_image"
TRAINED = "temporal|^condition/embedding_|attention_text|^input_conv/|^(down|up)_0_block"


def tiny_config(frames: int, *, temporal: bool = True) -> ConfigDict:
    """A phase whose U-Net is the image model of scenes, with embeddings in the text's place.

    temporal: whether it has layers over frames.
    """
    image = image_model.get_config()
    config = gen1.default_config().unlock()
    config.model.update({name: image.model[name] for name in ("unet", "scheduler", "training")})
    config.model.update(
        {
            "autoencoder": image.model.autoencoder,
            "dtype": "float32",
            "image_encoder": "scenes_image/image_text",
            "content_tokens": 4,
            "prior": "make_a_video_tiny/prior",
            "train_only": TRAINED,
            "temporal": temporal,
            "structure": False,
        }
    )
    config.temporal.max_frames = 8
    config.data.update(image.data.to_dict())
    config.data.num_frames = frames
    config.data.image_width = image.data.image_size
    config.train.cond_dropout = 0.15
    few_updates(config)
    config.checkpoint.every = 250
    config.sample.steps = 25
    config.sample.guidance = 3.0
    config.sample.batch_size = 8
    return config


def with_structure(config: ConfigDict, max_level: int) -> ConfigDict:
    """The phase with the depth of the data as structure, at t_s from 0 to `max_level`."""
    config.model.structure = True
    config.model.max_level = max_level
    config.model.unet.in_channels = 2 * config.model.unet.out_channels + 4
    config.data.extras = ("depth",)
    return config
