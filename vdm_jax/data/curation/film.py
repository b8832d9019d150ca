"""A film before it is measured: its identity, its index, and its frames as pictures."""

import dataclasses
import hashlib
import os
from collections.abc import Iterator
from typing import Any, Self

import av
import numpy as np
from av.codec.context import Flags2
from av.video.reformatter import VideoReformatter
from jaxtyping import Float32, Float64, UInt8

from vdm_jax.data import video_container, video_indexing
from vdm_jax.data.frames import Geometry, upright
from vdm_jax.data.source import DataError
from vdm_jax.data.video_container import Unusable
from vdm_jax.data.video_index import VideoFile, VideoIndex

MOST_PIXELS = 8192 * 8192  # of a frame; a damaged header may claim more than memory holds
_BLOCK = 1 << 22  # bytes that are read at a time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Film:
    """What is known of a film's content.

    Attributes:
      digest: SHA-256 of the file, as hexadecimal digits: films with equal digests are copies.
      size: bytes.
      height, width: pixels of the upright picture.
      codec, container: FFmpeg's names.
      file: frames, frame rate and index; its path is where the film was when it was read.
    """

    digest: str
    size: int
    height: int
    width: int
    codec: str
    container: str
    file: VideoFile

    @property
    def seconds(self) -> float:
        return self.file.frames / self.file.fps

    def to_json(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        values["file"]["packed"] = self.file.packed.decode()
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        file = values["file"]
        return cls(**{**values, "file": VideoFile(**{**file, "packed": file["packed"].encode()})})


def identify(path: str | os.PathLike) -> Film:
    """Reads a file once for its digest and once for its index.

    Raises Unusable with the reason, whatever is wrong with the file.
    """
    try:
        digest, size = _digest(path)
        index = video_indexing.build(path)
        return _film(path, digest, size, index)
    except Unusable:
        raise
    except Exception as error:  # whatever a damaged file makes a demuxer or a codec raise
        raise Unusable(f"unreadable: {video_container.reason_of(error)}") from error


def reindexed(film: Film, path: str | os.PathLike) -> Film:
    """The film with an index for which every frame was decoded."""
    return _film(path, film.digest, film.size, video_indexing.build(path, decode=True))


def _film(path: str | os.PathLike, digest: str, size: int, index: VideoIndex) -> Film:
    with video_container.open_video(path, index.demuxer) as container:
        codec = video_container.video_stream(container).codec_context.name
    height, width = index.geometry.upright_size
    if height * width > MOST_PIXELS:
        raise Unusable(f"frames of {width} x {height} pixels: at most {MOST_PIXELS} are read")
    return Film(
        digest=digest,
        size=size,
        height=height,
        width=width,
        codec=codec,
        container=index.demuxer,
        file=VideoFile.of(os.fsdecode(path), index),
    )


def _digest(path: str | os.PathLike) -> tuple[str, int]:
    found, size = hashlib.sha256(), 0
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            found.update(block)
            size += len(block)
    if not size:
        raise Unusable("is empty")
    return found.hexdigest(), size


def frame_seconds(index: VideoIndex) -> Float64[np.ndarray, "n"]:
    """When each frame is shown, in seconds from the first."""
    return (index.times - index.times[0]) * float(index.time_base)


class Frame:
    """A decoded frame, from which pictures of any size are made."""

    def __init__(
        self, frame: av.VideoFrame, geometry: Geometry, reformatters: dict[int, VideoReformatter]
    ):
        self._frame, self._geometry, self._reformatters = frame, geometry, reformatters

    def picture(self, side: int) -> UInt8[np.ndarray, "h w 3"]:
        """Upright, of square pixels, with a shorter side of at most `side` pixels."""
        height, width = self._geometry.upright_size
        scale = min(1.0, side / min(height, width))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        reformatter = self._reformatters.setdefault(side, VideoReformatter())
        return upright(self._frame, size, geometry=self._geometry, reformatter=reformatter)

    def coded_motion(self) -> float:
        """Mean length of the codec's motion vectors over the frame's pixels, in frame heights; 0
        where the codec stores none."""
        vectors = self._frame.side_data.get("MOTION_VECTORS")
        if vectors is None:
            return 0.0
        found = vectors.to_ndarray()
        lengths = np.hypot(found["motion_x"], found["motion_y"]) / np.maximum(
            found["motion_scale"], 1
        )
        areas = found["w"].astype(np.float64) * found["h"]
        pixels = self._frame.height * self._frame.width
        return float((lengths * areas).sum() / pixels / self._frame.height)


def frames(path: str | os.PathLike, index: VideoIndex) -> Iterator[Frame]:
    """The film's frames in the order in which they are shown, each decoded once, by one thread.

    Raises DataError at a frame that the decoder cannot decode, and PyAV's errors.
    """
    reformatters: dict[int, VideoReformatter] = {}
    with video_container.open_video(path, index.demuxer) as container:
        stream = video_container.video_stream(container)
        stream.thread_count = 1
        stream.codec_context.flags2 |= Flags2.export_mvs
        for number, frame in enumerate(container.decode(stream)):
            if frame.is_corrupt:
                raise DataError(f"frame {number} is damaged")
            yield Frame(frame, index.geometry, reformatters)


def grey(picture: UInt8[np.ndarray, "h w 3"]) -> Float32[np.ndarray, "h w"]:
    """Luma by BT.601, 0 to 255."""
    return picture.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
