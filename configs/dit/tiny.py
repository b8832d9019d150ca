"""A video transformer on the latents of scenes: 13 frames of 32 x 32 pixels, text by MiniLM.

Command: vdm data embed --config=dit/tiny
         vdm train --config=dit/tiny --config.model.autoencoder=VAE
         vdm convert --to=diffusers --model=runs/dit/tiny --out=DIR --dtype=float16
Hardware: 2 CPU cores.

Latents of 4 x 8 x 8 x 8, of VAE, the folder of dit/autoencoder, become 64 tokens. One
network is trained on clips and on images, and on clips of which the beginning, the end or both are
known, so that it also animates, extends and joins clips.
"""

from vdm_jax.systems import video_dit


def get_config():
    config = video_dit.default_config()
    with config.model.unlocked():
        config.model.transformer.update(
            num_attention_heads=6,
            attention_head_dim=32,
            in_channels=8,
            out_channels=8,
            text_dim=384,
            freq_dim=64,
            ffn_dim=768,
            num_layers=6,
        )
        config.model.scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}
    config.model.autoencoder = "dit_tiny/vae"
    config.model.masks = ("none", "none", "none", "beginning", "end", "ends")
    config.model.at_once = 3
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.text.encoder = "minilm"
    config.text.max_length = 20
    config.data.name = "scenes"
    config.data.config = "64x64x16"
    config.data.num_frames = 16
    config.data.image_size = config.data.image_width = 64
    config.data.part = (13, 32, 32)
    config.data.fps = 0.0
    config.data.image_frames = 2
    config.data.workers = 0
    config.train.steps = 1000
    config.train.batch_size = 16
    config.train.learning_rate = 1e-3
    config.train.schedule = "cosine"
    config.train.warmup_steps = 200
    config.train.ema_decay = 0.998
    config.train.log_every = 50
    config.train.sample_every = 0
    config.checkpoint.every = 250
    config.sample.sampler = "flow_euler"
    config.sample.steps = 40
    config.sample.guidance = 3.0
    config.sample.batch_size = 32
    return config
