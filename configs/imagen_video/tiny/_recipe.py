"""Imagen Video's cascade for moving shapes: what its stages have in common."""

from ml_collections import ConfigDict

from vdm_jax.config import load_recipe
from vdm_jax.systems import imagen_video

two_cores = load_recipe(__file__, "../../_two_cores.py").two_cores

# The same cascade for moving shapes, whose clips of 32 frames count as 24 frames a second.
TINY = imagen_video.specs(
    ("base_8", "base", 4, 8, 8, 3.0),
    ("tsr_6fps", "tsr", 8, 8, 8, 6.0),
    ("ssr_16", "ssr", 8, 16, 16, 6.0),
    ("ssr_32", "ssr", 8, 32, 32, 6.0),
    ("tsr_12fps", "tsr", 16, 32, 32, 12.0),
    ("tsr_24fps", "tsr", 32, 32, 32, 24.0),
    ("ssr_64", "ssr", 32, 64, 64, 24.0),
)


def tiny_config(name: str) -> ConfigDict:
    """The settings that all stages for moving shapes share, without the network's size.

    All are trained on clips of 32 frames with two shapes, of which each makes its own: a
    combination of colour, shape and direction that only `held_out` shows is unseen by every stage.
    Text is MiniLM's, computed beforehand: see `vdm data embed`.
    """
    config = two_cores(imagen_video.stage_config(TINY, name)).unlock()
    upsamples = bool(config.stage.low_res)
    config.stage.data_fps = 24.0
    # Beyond half of the times the condition is almost pure noise; sampling uses a tenth of them.
    config.stage.max_augmentation = 0.5
    config.model.channel_mult = (1,)
    config.model.num_res_blocks = (1,)
    config.model.attention_levels = (0,)
    config.model.temporal_levels = (0,)
    config.text.encoder = "minilm"
    config.text.max_length = 16
    config.model.text_kernel = 0
    # The smallest rendering that has all of the stage's pixels: reading is most of a small step.
    size = max(config.stage.shape[1], 16)
    config.data.name = "moving_shapes"
    config.data.config = f"{size}x{size}x32_two"
    config.data.num_frames = 32
    config.data.image_size = config.data.image_width = size
    config.data.fps = 0.0
    # Measured: 32 are worse by FVD and by pixels, see benchmarks/RESULTS.md.
    config.sample.steps = 8 if upsamples else 64
    # Each stage makes clips so like the data's that noise on them only takes away.
    config.sample.augmentation = 0.0
    config.sample.guidance = 1.0 if upsamples else 2.0
    return config.lock()


def about_blends(config: ConfigDict) -> None:
    """A TSR stage of 32 x 32 pixels refines blended frames and is trained on 8 frames in a row.

    At 6 and 12 frames a second, a blend of two frames of moving shapes is almost exact. The
    deviation is the likeliest one, measured.
    """
    config.stage.fill = "blend"
    config.stage.residual, config.stage.residual_of_acceleration = 0.002, 0.2
    config.stage.crop = (8, 32, 32)


def about_bilinear(config: ConfigDict) -> None:
    """An SSR stage refines bilinear frames, which are almost exact away from edges.

    The deviation is about the likeliest one at 16 to 64 pixels, measured.
    """
    config.stage.residual, config.stage.residual_of_contrast = 0.002, 0.45
