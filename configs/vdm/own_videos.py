"""VDM on a folder of your own video files: text to video, 8 frames of 32 x 32 at 8 frames a second.

Command: vdm train --config=vdm/own_videos --config.data.data_dir=VIDEOS --workdir=DIR
Hardware: 2 CPU cores are enough to begin.

The network of vdm/moving_shapes with room for real captions: 1,024 words, 32 of them in a caption.
Larger videos: --config.data.image_size=64 --config.model.channels=96. docs/own_videos.md walks
through it.
"""

from vdm_jax.config import load_recipe

_shapes = load_recipe(__file__, "moving_shapes.py")


def get_config():
    config = _shapes.get_config()
    config.text.max_length = 32
    config.text.vocabulary_size = 1024
    config.data.name = "video_folder"
    config.data.config = ""
    config.data.data_dir = "videos"
    config.data.image_size = 32
    config.data.fps = 8.0
    config.train.sample_every = 0  # no prompt is known before the captions are
    config.train.sample_prompts = ()
    return config
