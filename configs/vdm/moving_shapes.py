"""VDM on moving shapes, text to video, 8 frames of 16 x 16: the embedded default.

Command: vdm train --config=vdm/moving_shapes --workdir=DIR
Hardware: 2 CPU cores are enough.

What makes it learn within minutes: patches of 4 x 4 pixels, so that a step is cheap; each frame's
place in the clip in its condition, mixed with the text by a nonlinear layer, so that "left" can
mean another place in every frame; the noise schedule shifted towards noise, where the direction
of motion is decided.
"""

from vdm_jax.systems import vdm


def get_config():
    config = vdm.default_config()
    config.model.channels = 64
    config.model.channel_mult = (1,)
    config.model.num_res_blocks = 1
    config.model.attention_levels = (0,)
    config.model.head_dim = 32
    config.model.patch_size = 4
    config.model.norm_groups = 8
    config.model.skips = "level"
    config.model.coordinates = True
    config.model.frame_positions = True
    config.model.output_skip = True
    config.model.output_gate = True
    config.model.embedding_dim = 256
    config.model.dtype = "float32"
    config.process.logsnr_min = -15.0
    config.process.logsnr_max = 10.0
    config.process.logsnr_shift = -2.0
    config.text.encoder = "words"
    config.text.max_length = 8
    config.text.vocabulary_size = 16
    config.data.config = "16x16x8"
    config.data.num_frames = 8
    config.data.image_size = 16
    config.data.workers = 0
    config.train.steps = 20_000
    config.train.batch_size = 16
    config.train.learning_rate = 2e-3
    config.train.warmup_steps = 200
    config.train.ema_decay = 0.998
    config.train.log_every = 50
    config.train.sample_every = 2000
    config.train.sample_prompts = (
        "a red circle moving left",
        "a green square moving up",
        "a blue triangle moving right",
        "a yellow circle moving down",
    )
    config.checkpoint.every = 1000
    config.sample.sampler = "ddim"
    config.sample.steps = 64
    config.sample.guidance = 2.0
    config.sample.batch_size = 64
    return config
