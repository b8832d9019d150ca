"""VDM text-to-video, the small model: 16 frames of 64 x 64 (Ho et al. 2022, section 4.3).

Command: python -m launch.train --config=configs/vdm/t2v_small.py \
    --workdir=DIR --config.data.data_dir=FOLDER_OF_CAPTIONED_VIDEOS
Hardware: 16 accelerators of 32 GiB or more; the paper names none.

The paper trains on 10 million captioned videos that were not released, with the embeddings of a
frozen BERT-large; here words have trained embeddings. Joint training with 8 independent images a
clip. Residual blocks a level and the levels with attention are our reading of the paper.
"""

from vdm_jax.systems import vdm


def get_config():
    config = vdm.default_config()
    config.process.prediction = "eps"
    config.process.loss = "eps_mse"
    config.text.encoder = "words"
    config.text.vocabulary_size = 30_000
    config.text.max_length = 64
    config.data.name = "video_folder"
    config.data.image_frames = 8
    config.train.steps = 700_000
    config.sample.guidance = 3.0
    return config
