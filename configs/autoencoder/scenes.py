"""A KL autoencoder of scenes' frames, 64 x 64 pixels to latents of 16 x 16 x 4.

Command: vdm train --config=autoencoder/scenes
         vdm convert --to=diffusers --model=runs/autoencoder/scenes --out=DIR/vae --dtype=float16
Hardware: 2 CPU cores.
"""

from vdm_jax.systems import autoencoder


def get_config():
    config = autoencoder.default_config()
    with config.model.autoencoder.unlocked():
        config.model.autoencoder.update(
            block_out_channels=[16, 32, 64],
            down_block_types=["DownEncoderBlock2D"] * 3,
            up_block_types=["UpDecoderBlock2D"] * 3,
            layers_per_block=1,
            norm_num_groups=8,
            scaling_factor=1.0,  # measured when the folder is written
        )
    config.loss.l1 = 1.0
    config.loss.l2 = 1.0
    config.loss.kl = 5e-3
    config.loss.foreground = 4.0  # objects are a tenth of the pixels
    config.data.extras = ("mask",)
    config.data.name = "scenes"
    config.data.config = "64x64x16"
    config.data.image_size = 64
    config.data.workers = 0
    config.train.steps = 3000
    config.train.batch_size = 16
    config.train.learning_rate = 2e-3
    config.train.schedule = "cosine"
    config.train.warmup_steps = 200
    config.train.ema_decay = 0.998
    config.train.log_every = 50
    config.train.sample_every = 1000
    config.checkpoint.every = 500
    return config
