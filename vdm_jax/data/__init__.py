"""Captioned clips: rendered, from video files, or from TFDS; and the grain pipelines they feed."""

from vdm_jax.rules import COUNT, NOT_NEGATIVE

RULES = {
    "data.num_frames": COUNT,
    "data.image_size": COUNT,
    "data.frame_stride": COUNT,
    "data.image_frames": NOT_NEGATIVE,
    "data.workers": NOT_NEGATIVE,
}
