"""Video LDM: layers over frames of a latent image model, clips of 8 x 320 x 512 (Blattmann et
al. 2023, section 4.2).

Command: vdm train --config=video_ldm/paper --workdir=DIR --config.train.init_from=FOLDER \\
    --config.model.autoencoder=FOLDER/vae --config.text.weights=FOLDER \\
    --config.data.data_dir=FOLDER_OF_CAPTIONED_VIDEOS
Hardware: the paper does not give it.

FOLDER is Stable Diffusion 2.1's, one of the image models that the paper uses. Batch, learning rate
and steps are ours.
"""

from ml_collections import ConfigDict

from vdm_jax.systems import video_ldm


def get_config():
    config = video_ldm.default_config().unlock()
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.model.remat = "full"
    config.model.unet = ConfigDict(
        {
            **config.model.unet.to_dict(),
            "cross_attention_dim": 1024,
            "attention_head_dim": (5, 10, 20, 20),
            "use_linear_projection": True,
        }
    )
    config.text.encoder = "clip_h"
    config.data.name = "video_folder"
    config.data.image_size = 320
    config.data.image_width = 512
    config.train.batch_size = 256
    config.train.steps = 100_000
    return config
