"""A configuration of the real system whose training takes seconds, on real video files."""

from pathlib import Path

import numpy as np

from vdm_jax.data import video_io

CONFIG = """
from vdm_jax.systems import vdm

def get_config():
    config = vdm.default_config()
    config.device = "cpu"
    config.model.channels = 8
    config.model.channel_mult = (1,)
    config.model.num_res_blocks = 1
    config.model.attention_levels = ()
    config.model.head_dim = 4
    config.model.norm_groups = 2
    config.model.embedding_dim = 32
    config.model.patch_size = 4
    config.model.dtype = "float32"
    config.text.encoder = "words"
    config.text.max_length = 6
    config.text.vocabulary_size = 8
    config.data.name = "video_folder"
    config.data.data_dir = {videos!r}
    config.data.num_frames = 4
    config.data.image_size = 8
    config.data.workers = 0
    config.train.steps = {steps}
    config.train.batch_size = 2
    config.train.warmup_steps = 2
    config.train.log_every = 1
    config.train.sample_every = 0
    config.checkpoint.every = {every}
    config.checkpoint.keep = {keep}
    config.sample.sampler = "ddim"
    config.sample.steps = 2
    return config
"""


def write_config(folder: Path, steps: int = 100_000, every: int = 100_000, keep: int = 3) -> Path:
    """Three captioned videos in `folder`, and the file of a configuration that trains on them.

    steps, every and keep: train.steps, checkpoint.every and checkpoint.keep.
    """
    videos = Path(folder) / "videos"
    for index, color in enumerate(("red", "blue", "green")):
        video = np.zeros((6, 8, 8, 3), np.uint8)
        for frame in range(6):
            video[frame, 2:5, frame : frame + 3, index] = 255
        name = videos / f"{color}.mp4"
        video_io.write_mp4(name, video, min_size=8)
        name.with_suffix(".txt").write_text(f"a {color} square")
    path = Path(folder) / "tiny.py"
    path.write_text(CONFIG.format(videos=str(videos), steps=steps, every=every, keep=keep))
    return path
