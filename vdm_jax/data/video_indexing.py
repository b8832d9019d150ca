"""Makes the index of a video file, in one pass over its packets.

Where packets tell everything, no more than two frames are decoded. That is so in MP4, MOV,
Matroska, WebM and GIF, which store the time of every frame, with codecs that give one frame a
packet; and in AVI with codecs that have no B-frames. Other files are decoded once. H.264 or XviD
with B-frames in AVI, for example, has the times of packets only, in the order of decoding, and an
MPEG program stream times some of its packets.
"""

import dataclasses
import os

import av
import numpy as np
from jaxtyping import Int64

from vdm_jax.data.frames import Geometry
from vdm_jax.data.video_container import (
    NONE,
    Unusable,
    numbered_frames,
    open_video,
    reason_of,
    stamps_of,
    video_stream,
)
from vdm_jax.data.video_index import VideoIndex

_TIMED = ("mov", "matroska", "gif")  # demuxers that know the time of every frame
_INTRA = {"mjpeg", "ffv1", "prores", "png", "dnxhd", "huffyuv", "ffvhuff", "rawvideo", "gif"}
_ONE_FRAME_EACH = _INTRA | {"h264", "hevc", "av1", "vp9", "vp8", "mpeg4"}  # see `_shows`
_CODEC_OF_DECODER = {
    "libvpx": "vp8",
    "libvpx-vp9": "vp9",
    "libdav1d": "av1",
    "libaom-av1": "av1",
}
_NEVER_REORDERED = _INTRA | {"mpeg4"}  # of AVI; mpeg4 without B-frames
# A smaller packet may be the empty one that stands for a packed B-frame.
_LEAST_MPEG4 = 20


def build(path: str | os.PathLike, decode: bool = False) -> VideoIndex:
    """Reads the whole file once. decode: decode all frames in any case.

    Raises Unusable where the file holds no video or no frame, PyAV's errors where it is damaged,
    and OSError.
    """
    index = None if decode else _from_packets(path)
    return _from_frames(path) if index is None else index


def _from_packets(path: str | os.PathLike) -> VideoIndex | None:
    """The index by packets alone; None where they do not tell."""
    with open_video(path) as container:
        stream = video_stream(container)
        demuxer, decoder = container.format.name.split(",")[0], stream.codec_context.name
        codec = _CODEC_OF_DECODER.get(decoder, decoder)
        timed = demuxer in _TIMED
        clear = _ONE_FRAME_EACH if timed else _NEVER_REORDERED if demuxer == "avi" else ()
        if codec not in clear:
            return None
        rows, keys, note = [], [], ""  # (time, number); rows of `keys` without the frame's number
        number = -1
        try:
            for packet in container.demux(stream):
                if not packet.size:
                    continue
                number += 1
                if packet.is_corrupt:
                    note = "damaged"
                    break
                time = packet.pts if timed else packet.dts
                shows = _shows(packet, codec, reordered=timed)
                if time is None or shows is None:
                    return None
                if packet.is_discard or not shows:
                    continue
                rows.append((time, number))
                if packet.is_keyframe:
                    keys.append((number, *stamps_of(packet), time))
        except av.error.FFmpegError as error:
            note = reason_of(error)
        time_base, rate = stream.time_base, stream.average_rate or stream.guessed_rate
    if not rows or not keys:
        return None
    found = np.array(sorted(rows), np.int64)
    times, packets = found.T
    starts = np.array(keys, np.int64)
    # Frames that are shown before the first key frame need one that is not there.
    if (np.diff(times) <= 0).any() or packets[0] != starts[0, 0]:
        return None
    places = np.searchsorted(times, starts[:, 4])
    index = VideoIndex(
        demuxer=demuxer,
        time_base=time_base,
        times=times,
        rate=float(rate or 0),
        packets=packets,
        keys=np.column_stack([places, starts[:, :4]]),
        geometry=Geometry(height=1, width=1),
        decoded=False,
        note=_noted(note, len(times)),
    )
    return _checked(path, index)


def _shows(packet: av.Packet, codec: str, reordered: bool) -> bool | None:
    """Whether a packet gives a frame; None where that cannot be seen.

    reordered: whether B-frames are no matter, because every packet has its time.
    """
    if codec == "vp8":  # RFC 6386, section 9.1: show_frame
        return bool(memoryview(packet)[0] & 0x10)
    if codec == "mpeg4":
        data = bytes(packet)
        start = data.find(b"\0\0\1\xb6")  # ISO/IEC 14496-2, section 6.2.5: one vop and no more
        if len(data) < _LEAST_MPEG4 or start < 0 or len(data) < start + 5:
            return None
        if data.find(b"\0\0\1\xb6", start + 4) >= 0:
            return None
        bidirectional = data[start + 4] >> 6 == 2
        return None if bidirectional and not reordered else True
    return True


def _checked(path: str | os.PathLike, index: VideoIndex) -> VideoIndex | None:
    """The index with the geometry, where the first two frames come out as it says; else None."""
    first = min(2, len(index))
    with open_video(path, index.demuxer) as container:
        stream = video_stream(container)
        for place, (number, frame) in enumerate(numbered_frames(container, stream)):
            if number != index.packets[place]:
                return None
            if place == 0:
                geometry = Geometry.of_frame(frame, stream.sample_aspect_ratio)
            if place == first - 1:
                return dataclasses.replace(index, geometry=geometry)
    return None


def _from_frames(path: str | os.PathLike) -> VideoIndex:
    """The index by decoding every frame."""
    numbers, pts, dts, key_frames, stamps = [], [], [], [], {}
    geometry, note = None, ""
    with open_video(path) as container:
        stream = video_stream(container)
        demuxer = container.format.name.split(",")[0]
        try:
            for number, frame in numbered_frames(container, stream, stamps=stamps):
                if geometry is None:
                    geometry = Geometry.of_frame(frame, stream.sample_aspect_ratio)
                numbers.append(number)
                pts.append(NONE if frame.pts is None else frame.pts)
                dts.append(NONE if frame.dts is None else frame.dts)
                key_frames.append(frame.key_frame)
        except av.error.FFmpegError as error:
            if not numbers:
                raise
            note = reason_of(error)
        time_base, rate = stream.time_base, stream.average_rate or stream.guessed_rate
    if not numbers:
        raise Unusable("unreadable: no frame can be decoded")
    known = None not in numbers and len(set(numbers)) == len(numbers)
    if demuxer == "avi":  # it has no pts; those that there are have been guessed
        in_order = known and (np.diff(numbers) > 0).all()
        pts = [stamps[number][1] for number in numbers] if in_order else [NONE] * len(pts)
    step = 1 / (float(rate) * float(time_base)) if rate else 1.0
    keys = [
        (place, number, *stamps[number][:3])
        for place, number in enumerate(numbers)
        if known and key_frames[place] and stamps[number][3]
    ]
    return VideoIndex(
        demuxer=demuxer,
        time_base=time_base,
        times=frame_times(np.array(pts), np.array(dts), step),
        rate=float(rate or 0),
        packets=np.array(numbers if known else [], np.int64),
        keys=np.array(keys, np.int64).reshape(-1, 5),
        geometry=geometry,
        decoded=True,
        note=_noted(note, len(numbers)),
    )


def frame_times(
    pts: Int64[np.ndarray, "n"], dts: Int64[np.ndarray, "n"], step: float
) -> Int64[np.ndarray, "n"]:
    """Increasing times of frames, in ticks, from what a decoder gives beside each.

    A frame's pts where they increase. Else, as FFmpeg guesses it too (guess_correct_pts), the dts
    of the packet at which the frame came out; the last frames come out after all packets and have
    none. Else those pts that increase are right, and the frames between them evenly spaced.

    step: ticks a frame, as declared.
    """
    if (pts != NONE).all() and (np.diff(pts) > 0).all():
        return pts
    count = int((dts != NONE).sum())
    if count and (dts[:count] != NONE).all() and (np.diff(dts[:count]) > 0).all():
        rest = dts[count - 1] + np.rint(step * np.arange(1, len(dts) - count + 1))
        return np.concatenate([dts[:count], rest.astype(np.int64)])
    places: list[int] = []
    for place, time in enumerate(pts):
        if time != NONE and (not places or time - pts[places[-1]] >= place - places[-1]):
            places.append(place)
    places = places or [0]
    known = np.where(pts[places] == NONE, 0, pts[places]).astype(float)
    numbers = np.arange(len(pts))
    times = np.interp(numbers, places, known)
    times += step * (np.minimum(numbers - places[0], 0) + np.maximum(numbers - places[-1], 0))
    times = np.rint(times).astype(np.int64)
    return np.maximum.accumulate(times - numbers) + numbers  # at least a tick apart


def _noted(note: str, frames: int) -> str:
    return f"damaged after {frames} frames ({note})" if note else ""
