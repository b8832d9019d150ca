"""TFDS's Video feature without TensorFlow: the same files, written by Pillow and PyAV."""

import io
import os
from typing import Any

import av
import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

_Video = tfds.features.Video  # by this name: it is swapped for PNGVideo where builders are made


class PNGVideo(_Video):
    """Reads and writes what `tfds.features.Video` does: a sequence of encoded frames.

    The parent class asks TensorFlow to name a dtype when it is made, to encode arrays, and the
    ffmpeg program to decode files; nothing else in it needs either.
    """

    def __init__(self, shape=None, encoding_format="png", use_colormap=False, doc=None, **unused):
        # Arguments of ffmpeg and the dtype have no meaning here: frames are uint8, as decoded.
        self._encoding_format = encoding_format or "png"
        self._extra_ffmpeg_args = list(unused.get("ffmpeg_extra_args") or [])
        shape = tuple(shape) if shape else None
        # Past tfds.features.Video's own __init__, which is what needs TensorFlow.
        super(_Video, self).__init__(
            tfds.features.Image(
                shape=shape[1:] if shape else None,
                dtype=np.uint8,
                encoding_format=self._encoding_format,
                use_colormap=use_colormap,
            ),
            length=shape[0] if shape else None,
            doc=doc,
        )

    def encode_example(self, video: Any) -> Any:
        """Frames as arrays or encoded bytes; or a path, file object or bytes of a video file."""
        if isinstance(video, bytes):
            video = io.BytesIO(video)
        if isinstance(video, str | os.PathLike) or hasattr(video, "read"):
            with av.open(
                os.fspath(video) if isinstance(video, os.PathLike) else video
            ) as container:
                video = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        frames = [frame if isinstance(frame, bytes) else self._encode(frame) for frame in video]
        return super(_Video, self).encode_example(frames)

    def _encode(self, frame: np.ndarray) -> bytes:
        frame = np.asarray(frame)
        stream = io.BytesIO()
        Image.fromarray(frame[..., 0] if frame.shape[-1] == 1 else frame).save(
            stream, format=self._encoding_format.upper()
        )
        return stream.getvalue()

    @property
    def _fully_qualified_class_name(self) -> str:
        # What is written into features.json: prepared data is TFDS's own, readable without us.
        return f"{_Video.__module__}.{_Video.__name__}"

    @property
    def dtype(self) -> Any:
        # The parent's is a TensorFlow dtype; it is asked for when features.json is written.
        return self.np_dtype
