"""Stable Diffusion 1.5 trained on captioned images of 512 x 512 (Rombach et al. 2022).

Command: vdm train --config=latent_image/sd15 --workdir=DIR --config.train.init_from=FOLDER \\
    --config.model.autoencoder=FOLDER/vae --config.text.weights=FOLDER \\
    --config.data.data_dir=FOLDER_OF_CAPTIONED_IMAGES_OR_VIDEOS
Hardware: the published model's training took 32 nodes of 8 A100.

FOLDER is the published pipeline. Batch, learning rate and warm-up are those of its model card.
"""

from vdm_jax.systems import latent_image


def get_config():
    config = latent_image.default_config().unlock()
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.model.remat = "full"
    config.data.name = "video_folder"
    config.train.batch_size = 2048
    config.train.learning_rate = 1e-4
    config.train.warmup_steps = 10_000
    config.train.steps = 595_000
    return config
