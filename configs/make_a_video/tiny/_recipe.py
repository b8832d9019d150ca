"""Make-A-Video on scenes: what its stages have in common."""

from ml_collections import ConfigDict

from vdm_jax.config import load_recipe
from vdm_jax.systems import make_a_video

image_model = load_recipe(__file__, "../../latent_image/scenes.py")
budgets = load_recipe(__file__, "../../_two_cores.py")
about_bilinear = load_recipe(__file__, "../../imagen_video/tiny/_recipe.py").about_bilinear

PAIR = "scenes_image/image_text"
# Parameters that the stages train, so that they ship as small differences from the image model.
EMBEDDING = "attention_text/|^condition/embedding_"
VIDEO = make_a_video.TEMPORAL
FPS = 8.0
GIVEN, SKIP = 4, 5  # 4 frames become 16


def prior() -> ConfigDict:
    """P on single frames and their captions."""
    config = make_a_video.default_config(make_a_video.PRIOR)
    _common(config)
    config.model.prior.update(width=128, hidden=512, num_layers=4, heads=4)
    config.model.image_encoder = PAIR
    config.text.update({"encoder": "minilm", "max_length": 20})
    config.process.update({"logsnr_min": -10.0, "logsnr_max": 10.0})
    config.sample.batch_size = 64
    return config


def decoder(part: str, frames: int) -> ConfigDict:
    """A stage of latents whose U-Net is inflated from the image model of scenes."""
    image = image_model.get_config()
    config = make_a_video.default_config(part, (frames, 64, 64))
    _common(config)
    config.model.unet = image.model.unet
    config.model.scheduler = image.model.scheduler
    config.model.autoencoder = image.model.autoencoder
    config.model.training = image.model.training
    config.model.space = "latents"
    config.model.image_encoder = PAIR
    config.sample.steps = 50
    config.sample.guidance = 2.0
    config.sample.batch_size = 16
    return config


def on_clips(config: ConfigDict) -> ConfigDict:
    """Makes a decoder's configuration that of D^t or ↑F, which reads clips of 16 frames."""
    config.model.temporal = True
    config.model.train_only = VIDEO
    config.data.num_frames = (GIVEN - 1) * SKIP + 1
    config.stage.data_fps = FPS
    return config


def super_resolution(size: int, *, temporal: bool) -> ConfigDict:
    """16 frames of `size` pixels from half as many, trained on crops."""
    frames = (GIVEN - 1) * SKIP + 1
    config = make_a_video.default_config(make_a_video.SUPER_RESOLUTION, (frames, size, size))
    budgets.two_cores(config)
    _common(config)
    config.stage.low_res = (frames, size // 2, size // 2)
    config.stage.crop = (8 if temporal else 1, 64, 64)
    config.stage.data_fps = FPS
    # Beyond half of the times the condition is almost pure noise; sampling uses none.
    config.stage.max_augmentation = 0.5
    about_bilinear(config)
    config.model.channels = 48
    config.model.channel_mult = (1,)
    config.model.num_res_blocks = (1,)
    config.model.attention_levels = (0,)
    config.model.temporal_levels = (0,)
    config.model.temporal = "convolution" if temporal else "none"
    config.model.patch_size = 4
    config.model.spatial_attention = "none"
    config.model.norm_groups = 0
    config.model.embedding_dim = 96
    config.data.config = "256x256x16"
    config.data.num_frames = frames
    config.data.image_size = config.data.image_width = 256
    config.train.batch_size = 8
    config.sample.steps = 8
    config.sample.batch_size = 1
    return config


def _common(config: ConfigDict) -> None:
    """Sets how small stages are trained on scenes."""
    config.unlock()
    config.model.dtype = "float32"
    config.data.name = "scenes"
    config.data.config = "64x64x16"
    config.data.workers = 0
    budgets.few_updates(config)
