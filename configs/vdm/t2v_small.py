"""VDM text-to-video, the small model: 16 frames of 64 x 64 (Ho et al. 2022, section 4.3).

Command: vdm train --config=vdm/t2v_small \
    --workdir=DIR --config.data.data_dir=FOLDER_OF_CAPTIONED_VIDEOS
Hardware: the paper's is 64 TPU v4 chips; its time is not given.

The paper trains on 10 million captioned videos that were not released, with the embeddings of a
frozen BERT-large; here words have trained embeddings. Sizes and training are appendix A's.
"""

from vdm_jax.systems import vdm


def get_config():
    config = vdm.default_config()
    config.model.channels = 128
    config.process.prediction = "eps"
    config.process.loss = "eps_mse"
    config.text.encoder = "words"
    config.text.vocabulary_size = 30_000
    config.text.max_length = 64
    config.data.name = "video_folder"
    config.data.image_frames = 8
    config.train.steps = 200_000
    config.sample.guidance = 2.0
    return config
