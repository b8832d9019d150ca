"""A causal video autoencoder of scenes, 4 x 4 x 4 pixels a latent of 8 numbers.

Command: vdm train --config=dit/autoencoder
         vdm convert --to=diffusers --model=runs/dit/autoencoder --out=DIR/vae --dtype=float16
Hardware: 2 CPU cores.

Clips have 13 frames of 32 x 32 pixels. A network that was trained on 5 alone computes 13 badly:
only from the third latent frame on do its convolutions look back at what they computed four frames
at a time. The network that ships saw clips of 5 frames first (docs/dit.md).
"""

from vdm_jax.systems import autoencoder
from vdm_jax.weights import causal_autoencoder


def get_config():
    config = autoencoder.default_config()
    with config.model.unlocked():
        config.model.autoencoder = {
            "_class_name": causal_autoencoder.CLASS,
            "base_dim": 12,
            "dim_mult": [1, 2, 3],
            "num_res_blocks": 1,
            "z_dim": 8,
            "temperal_downsample": [True, True],  # by its published name
            "latents_mean": [0.0] * 8,  # measured when the folder is written
            "latents_std": [1.0] * 8,
            "scale_factor_temporal": 4,
            "scale_factor_spatial": 4,
        }
    config.loss.l1 = 1.0
    config.loss.l2 = 1.0
    config.loss.kl = 1e-3
    config.loss.foreground = 4.0  # objects are a tenth of the pixels
    config.data.extras = ("mask",)
    config.data.name = "scenes"
    config.data.config = "64x64x16"
    config.data.num_frames = 16
    config.data.image_size = 64
    config.data.part = (13, 32, 32)
    config.data.workers = 0
    config.train.steps = 3500
    config.train.batch_size = 4
    config.train.optimizer = "muon"
    config.train.learning_rate = 2e-3
    config.train.schedule = "cosine"
    config.train.warmup_steps = 100
    config.train.ema_decay = 0.995
    config.train.log_every = 50
    config.train.sample_every = 400
    config.checkpoint.every = 500
    return config
