"""Video files opened and decoded, each frame with the number of the packet that it was coded in.

The decoder hands the number on (`AV_CODEC_FLAG_COPY_OPAQUE`), counted from the file's first packet.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from av.stream import Disposition
from jaxtyping import Int64

# The demuxer by extension, for files whose content names none.
DEMUXERS = {
    ".mp4": "mov",
    ".m4v": "mov",
    ".mov": "mov",
    ".webm": "matroska",
    ".mkv": "matroska",
    ".avi": "avi",
    ".gif": "gif",
    ".mpg": "mpeg",
    ".mpeg": "mpeg",
}
# Demuxers that a file's content may choose, whatever its name. None of them opens other files, as
# those of playlists do.
ALLOWED = (
    *dict.fromkeys(DEMUXERS.values()),
    *("mpegts", "mpegvideo", "m4v", "flv", "asf", "ogg", "ivf", "nut", "dv", "yuv4mpegpipe"),
)
NONE = np.iinfo(np.int64).min  # stands for a missing time stamp


class Unusable(ValueError):
    """Why a file cannot be used; the same each time that it is looked at."""


def open_video(path: str | os.PathLike, demuxer: str | None = None) -> av.container.InputContainer:
    """Opens a video file, and no other file.

    demuxer: one of `ALLOWED`, known from an index; None: the file's content chooses one, and where
    it chooses none, the extension does. Raises PyAV's errors, OSError and ValueError.
    """
    if demuxer is not None and demuxer not in ALLOWED:
        raise ValueError(f"demuxer {demuxer!r}: allowed are {', '.join(ALLOWED)}")
    path = os.path.abspath(path)  # a colon in a relative name would be a protocol
    options = {"protocol_whitelist": "file"}
    if demuxer is not None:
        return av.open(path, format=demuxer, options=options)
    try:
        return av.open(path, options={**options, "format_whitelist": ",".join(ALLOWED)})
    except av.error.FFmpegError:
        own = DEMUXERS.get(Path(path).suffix.lower())
        if own is None or not os.path.isfile(path):
            raise
        return av.open(path, format=own, options=options)


def video_stream(container: av.container.InputContainer) -> av.VideoStream:
    """The first video that is no cover picture. Raises Unusable where there is none."""
    for stream in container.streams.video:
        if Disposition.attached_pic not in stream.disposition:
            return stream
    kinds = sorted({stream.type for stream in container.streams if stream.type != "video"})
    raise Unusable(f"has no video{', only ' + ' and '.join(kinds) if kinds else ''}")


def numbered_frames(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    start: Int64[np.ndarray, "5"] | None = None,
    stamps: dict[int, tuple[int, int, int, bool]] | None = None,
) -> Iterator[tuple[int | None, av.VideoFrame]]:
    """Frames in the order in which they are shown, with the numbers of their packets.

    start: a row of `VideoIndex.keys`: packets before that one are not decoded. The container must
    be at or before it; where the packet does not come, nothing does. stamps: receives times and
    size of every packet, and whether it is a key, by number. Raises PyAV's errors.
    """
    stream.codec_context.copy_opaque = True
    number = -1 if start is None else None
    started = start is None
    for packet in container.demux(stream):
        if packet.size:
            if number is None:
                pts, dts, size = stamps_of(packet)
                if NONE != start[3] < dts:
                    return
                if (pts, dts, size) != tuple(start[2:]):
                    continue
                number = int(start[1]) - 1
            number += 1
            # An object of its own: PyAV files it under its address, and small numbers are shared
            # with the packets of other threads.
            packet.opaque = [number]
            if stamps is not None:
                stamps[number] = (*stamps_of(packet), packet.is_keyframe)
        elif number is None:
            return
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            if started:
                raise
            continue  # a frame before the key frame, which needs others
        for frame in frames:
            came = frame.opaque[0] if frame.opaque else None
            started |= start is not None and came == start[1]
            yield came, frame


def stamps_of(packet: av.Packet) -> tuple[int, int, int]:
    """(presentation time, decoding time, size in bytes)"""
    pts, dts = (NONE if time is None else time for time in (packet.pts, packet.dts))
    return pts, dts, packet.size


def reason_of(error: Exception) -> str:
    """An error's text, without the number and the path that PyAV adds."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
