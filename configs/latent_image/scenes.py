"""A latent image model of scenes' frames, 64 x 64 pixels, in Stable Diffusion's form.

Command: vdm data embed --config=latent_image/scenes
         vdm train --config=latent_image/scenes
         vdm convert --to=diffusers --model=runs/latent_image/scenes --out=DIR --dtype=float16
Hardware: 2 CPU cores.

Latents of 16 x 16 x 4, of the autoencoder that autoencoder/scenes trains. Pixels attend to the
states of MiniLM. The schedule is DDPM's (Ho et al. 2020) and ends in almost pure noise, so the
sampler's start has no trace of an image's mean; it is sampled on timesteps that begin at the last.
"""

from vdm_jax.systems import latent_image


def get_config():
    config = latent_image.default_config()
    with config.model.unlocked():
        config.model.unet.update(
            block_out_channels=[48, 112],
            down_block_types=["CrossAttnDownBlock2D"] * 2,
            up_block_types=["CrossAttnUpBlock2D"] * 2,
            layers_per_block=1,
            norm_num_groups=16,
            cross_attention_dim=384,
            attention_head_dim=4,  # by its published name: the number of heads
        )
        config.model.scheduler.update(
            beta_schedule="linear",
            beta_start=0.0001,
            beta_end=0.02,
            prediction_type="v_prediction",
            set_alpha_to_one=True,
            steps_offset=0,
            timestep_spacing="trailing",
        )
    config.model.autoencoder = "scenes_image/vae"
    config.model.training = "cosine"
    config.model.dtype = "float32"
    config.text.encoder = "minilm"
    config.text.max_length = 20
    config.data.name = "scenes"
    config.data.config = "64x64x16"
    config.data.image_size = 64
    config.data.workers = 0
    config.train.steps = 25_000  # the shipped network had 24,700: docs/stable_diffusion.md
    config.train.batch_size = 16
    config.train.optimizer = "muon"
    config.train.learning_rate = 1e-3
    config.train.schedule = "cosine"
    config.train.warmup_steps = 200
    config.train.ema_decay = 0.999
    config.train.log_every = 50
    config.train.sample_every = 0
    config.checkpoint.every = 500
    config.sample.steps = 50
    config.sample.guidance = 2.0
    config.sample.batch_size = 64
    return config
