"""Video LDM on scenes, the decoder: that of the image model's autoencoder with layers over frames,
trained on clips of 8 x 64 x 64 against a discriminator of patches. The encoder stays as it is.

Command: vdm train --config=video_ldm/tiny/decoder --workdir=DIR/decoder
         vdm convert --to=diffusers --model=DIR/decoder --out=DIR/vae --dtype=float16
Hardware: 2 CPU cores.

--config.model.autoencoder=DIR/vae in the training of a model of clips gives it this decoder.
"""

from vdm_jax.config import load_recipe

image = load_recipe(__file__, "../../autoencoder/scenes.py")


def get_config():
    config = image.get_config()
    with config.unlocked():
        config.model.autoencoder._class_name = "AutoencoderKLFrameDecoder"
        config.model.autoencoder.scaling_factor = 0.5023058105707829  # of scenes_image/vae
        config.model.train_only = "^decoder/|^discriminator/"
        config.loss.adversarial = 0.02
        config.loss.kl = 0.0
        config.data.num_frames = 16
        config.data.part = (8, 64, 64)
        config.train.init_from = "scenes_image/vae"
        config.train.steps = 500
        config.train.batch_size = 2
        config.train.optimizer = "adamw"
        config.train.learning_rate = 3e-4
        config.train.warmup_steps = 25
        config.train.ema_decay = 0.99
        config.train.log_every = 25
        config.train.sample_every = 0
        config.checkpoint.every = 100
    return config
