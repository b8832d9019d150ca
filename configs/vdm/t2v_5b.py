"""VDM text-to-video at twice the width of the paper's large model: 5.2 billion parameters.

Command: vdm train --config=vdm/t2v_5b \
    --workdir=DIR --config.data.data_dir=FOLDER_OF_CAPTIONED_VIDEOS
Hardware: a pod slice of 64 chips or more; docs/pods.md says of which kind. Not trained by anybody
yet: it shows how the library scales.

As t2v_large.py but twice as wide, the embedding of the condition too. Parameters, moving average
and moments are cut up over all devices, activations computed again in the backward pass.
"""

from vdm_jax.systems import vdm


def get_config():
    config = vdm.default_config()
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.model.channels = 512
    config.model.embedding_dim = 2048
    config.model.remat = "full"
    config.process.prediction = "eps"
    config.process.loss = "eps_mse"
    config.text.encoder = "words"
    config.text.vocabulary_size = 30_000
    config.text.max_length = 64
    config.data.name = "video_folder"
    config.data.image_frames = 8
    config.train.steps = 700_000
    config.sample.guidance = 2.0
    return config
