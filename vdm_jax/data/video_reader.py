"""Frames of a video file by their numbers in its index: after a seek where that delivers them, else
decoded from the file's start."""

import os
from collections.abc import Iterator, Sequence

import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import Int64, UInt8

from vdm_jax.data import video_container
from vdm_jax.data.frames import upright
from vdm_jax.data.source import DataError
from vdm_jax.data.video_container import NONE
from vdm_jax.data.video_index import VideoIndex

# Seconds before a key frame that are aimed at, one after the other. A container without an index
# lands a little behind the time that it is asked for.
_MARGINS = {"mpeg": (1.0, 5.0), "mpegts": (1.0, 5.0), "mpegvideo": ()}
_NO_MARGIN = (0.0,)


class IndexMismatch(DataError):
    """The file's frames are not those of its index."""


def decode(
    path: str | os.PathLike,
    index: VideoIndex,
    wanted: Sequence[int],
    size: tuple[int, int] | None = None,
) -> UInt8[np.ndarray, "f h w 3"]:
    """The frames with the numbers `wanted`, upright, of square pixels.

    wanted: ascending; a number may occur more than once. size: see `frames.upright`.
    Raises IndexMismatch where the file has other frames than the index says, DataError and PyAV's
    errors where it is damaged, and OSError.
    """
    for start, margin in _starts(index, wanted[0]):
        found = _attempt(path, index, wanted, size, start, margin)
        if found is not None:
            return np.stack([found[number] for number in wanted])
    raise IndexMismatch(f"its frames up to number {wanted[-1]} are not those of its index")


def _starts(index: VideoIndex, first: int) -> Iterator[tuple[Int64[np.ndarray, "5"] | None, float]]:
    """(key frame, seconds to aim before it), from the cheapest; a key of None: the file's start."""
    place = int(np.searchsorted(index.keys[:, 0], first, side="right")) - 1
    if place >= 0 and index.keys[place, 1] > 0:
        for margin in _MARGINS.get(index.demuxer, _NO_MARGIN):
            yield index.keys[place], margin
    yield None, 0.0


def _attempt(
    path: str | os.PathLike,
    index: VideoIndex,
    wanted: Sequence[int],
    size: tuple[int, int] | None,
    start: Int64[np.ndarray, "5"] | None,
    margin: float,
) -> dict[int, np.ndarray] | None:
    """Frames by number; None where other frames come than the index says, or fewer."""
    found: dict[int, np.ndarray] = {}
    needed = set(wanted)
    reformatter = VideoReformatter()
    with video_container.open_video(path, index.demuxer) as container:
        stream = video_container.video_stream(container)
        if start is not None:
            time = start[3] if start[3] != NONE else start[2]
            if time == NONE:
                return None
            aim = int(time) - round(margin / index.time_base)
            try:
                container.seek(aim, stream=stream, backward=True)
            except (OSError, ValueError):  # PyAV's errors are these too
                return None
        number = None if start is not None else 0
        damaged = False  # this frame, or one since the last key frame that it may be made from
        for packet, frame in video_container.numbered_frames(container, stream, start):
            if number is None:
                # Frames before the key frame need others that were not decoded.
                if packet != start[1] or not frame.key_frame:
                    continue
                number = int(start[0])
            if number >= len(index) or (len(index.packets) and packet != index.packets[number]):
                return None
            damaged = frame.is_corrupt or (damaged and not frame.key_frame)
            if number in needed:
                if damaged and start is not None:
                    return None
                if damaged:
                    raise DataError(f"frame {number} is damaged")
                found[number] = upright(
                    frame, size, geometry=index.geometry, reformatter=reformatter
                )
            if number >= wanted[-1]:
                return found
            number += 1
    return None
