"""Captioned clips: rendered, from video files, or from TFDS; and the grain pipelines they feed."""
