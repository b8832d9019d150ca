"""One index a video file: the time of every frame in the order in which they are shown.

It also holds where decoding can begin, and the geometry. It is made in one pass over the packets.
Where packets tell everything, no more than two frames are decoded. That is so in MP4, MOV,
Matroska, WebM and GIF, which store the time of every frame, with codecs that give one frame a
packet; and in AVI with codecs that have no B-frames. Other files are decoded once. H.264 or XviD
with B-frames in AVI, for example, has the times of packets only, in the order of decoding, and an
MPEG program stream times some of its packets.

A frame is known by the packet that it was coded in, counted from the file's first: the decoder
hands the number on (`AV_CODEC_FLAG_COPY_OPAQUE`). So a reader can tell whether a frame that it gets
after a seek is the one that the index means.
"""

import base64
import dataclasses
import functools
import json
import os
import zlib
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
from av.stream import Disposition
from jaxtyping import Int64

from vdm_jax.data.frames import Geometry

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
MAX_JITTER = 0.3  # of the frame interval; beyond it the frame rate is variable
NONE = np.iinfo(np.int64).min  # stands for a missing time stamp


class Unusable(ValueError):
    """Why a file cannot be used; the same each time that it is looked at."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class VideoIndex:
    """What is known of a file.

    Attributes:
      demuxer: FFmpeg's name of it.
      time_base: seconds a tick.
      times: ticks of each frame, increasing, in the order in which frames are shown.
      rate: declared frames a second, for a file of one frame; 0 = none.
      packets: number of the packet that each frame was coded in; empty where the decoder does not
        tell, and then every reading decodes from the start.
      keys: one row a frame at which decoding can begin: the frame's number, then its packet's
        number, presentation time, decoding time (in ticks, or NONE) and size in bytes.
      geometry: of the first frame.
      decoded: whether all frames were decoded for it.
      note: what is wrong with the file, where a part of it can be used.
    """

    demuxer: str
    time_base: Fraction
    times: Int64[np.ndarray, "n"]
    rate: float
    packets: Int64[np.ndarray, "n"]
    keys: Int64[np.ndarray, "k 5"]
    geometry: Geometry
    decoded: bool
    note: str = ""

    def __len__(self) -> int:
        return len(self.times)

    @functools.cached_property
    def ticks(self) -> float:
        """The mean interval between frames, in ticks."""
        if len(self) < 2:
            return 1 / (float(self.time_base) * (self.rate or 1.0))
        return float(self.times[-1] - self.times[0]) / (len(self) - 1)

    @property
    def fps(self) -> float:
        """Frames a second, the mean over the file."""
        return 1 / (self.ticks * float(self.time_base))

    @functools.cached_property
    def constant(self) -> bool:
        """Whether every frame is near its place in a constant frame rate.

        One tick more or less is rounding, unless a tick is as long as a frame.
        """
        even = self.times[0] + self.ticks * np.arange(len(self))
        most = max(MAX_JITTER * self.ticks, min(1.0, 0.45 * self.ticks))
        return bool(np.abs(self.times - even).max() <= most)

    def frames_at(self, places: np.ndarray) -> Int64[np.ndarray, "m"]:
        """Numbers of the frames that are shown at `places`, in mean frame intervals from the first:
        the nearest at or before each."""
        # A time may be rounded by a tick, unless a tick is about as long as a frame.
        slack = min(0.15, 1 / self.ticks) if self.ticks > 3 else 1e-3
        places = np.asarray(places) + slack
        if self.constant:
            found = np.floor(places).astype(np.int64)
        else:
            wanted = self.times[0] + places * self.ticks
            found = np.searchsorted(self.times, wanted, side="right") - 1
        return np.clip(found, 0, len(self) - 1)

    def to_json(self) -> dict[str, Any]:
        """What `from_json` reads: numbers, texts and lists. Even steps take one entry."""
        geometry = dataclasses.asdict(self.geometry)
        geometry["aspect"] = _pair(self.geometry.aspect)
        return {
            "demuxer": self.demuxer,
            "time_base": _pair(self.time_base),
            "times": _runs(np.diff(self.times, prepend=0)),
            "rate": self.rate,
            "packets": _runs(self.packets - np.arange(len(self.packets))),
            "keys": np.diff(self.keys, axis=0, prepend=0).tolist(),
            "geometry": geometry,
            "decoded": self.decoded,
            "note": self.note,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The index that `to_json` was called on."""
        geometry = dict(content["geometry"])
        geometry["aspect"] = Fraction(*geometry["aspect"])
        times = np.cumsum(_unrolled(content["times"]))
        packets = _unrolled(content["packets"])
        keys = np.array(content["keys"], np.int64).reshape(-1, 5)
        if not len(times) or len(packets) not in (0, len(times)):
            raise ValueError("times and packets do not belong together")
        return cls(
            **{
                **content,
                "time_base": Fraction(*content["time_base"]),
                "times": times,
                "packets": packets + np.arange(len(packets)),
                "keys": np.cumsum(keys, axis=0),
                "geometry": Geometry(**geometry),
            }
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoFile:
    """What a source keeps of a file, in few bytes.

    Attributes:
      frames: how many.
      fps: frames a second, the mean over the file.
      constant: whether the frame rate is.
      note: what is wrong with it; "" = nothing that is known.
      packed: its `VideoIndex`, as JSON, compressed, in base 64.
    """

    path: str
    frames: int
    fps: float
    constant: bool
    note: str
    packed: bytes

    @classmethod
    def of(cls, path: str, index: VideoIndex) -> Self:
        text = json.dumps(index.to_json(), separators=(",", ":"))
        packed = base64.b64encode(zlib.compress(text.encode()))
        return cls(
            path=path,
            frames=len(index),
            fps=index.fps,
            constant=index.constant,
            note=index.note,
            packed=packed,
        )

    @property
    def index(self) -> VideoIndex:
        """Raises ValueError where `packed` is no index."""
        try:
            return _unpacked(self.packed)
        except (KeyError, TypeError, ArithmeticError, zlib.error) as error:
            raise ValueError(f"its index is damaged: {error}") from error


@functools.lru_cache(maxsize=256)
def _unpacked(packed: bytes) -> VideoIndex:
    return VideoIndex.from_json(json.loads(zlib.decompress(base64.b64decode(packed))))


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


def build(path: str | os.PathLike, decode: bool = False) -> VideoIndex:
    """Reads the whole file once. decode: decode all frames in any case.

    Raises Unusable where the file holds no video or no frame, PyAV's errors where it is damaged,
    and OSError.
    """
    index = None if decode else _from_packets(path)
    return _from_frames(path) if index is None else index


def reason_of(error: Exception) -> str:
    """An error's text, without the number and the path that PyAV adds."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


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
                    keys.append((number, *_stamps(packet), time))
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
                pts, dts, size = _stamps(packet)
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
                stamps[number] = (*_stamps(packet), packet.is_keyframe)
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


def _stamps(packet: av.Packet) -> tuple[int, int, int]:
    """(presentation time, decoding time, size in bytes)"""
    pts, dts = (NONE if time is None else time for time in (packet.pts, packet.dts))
    return pts, dts, packet.size


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


def _pair(value: Fraction) -> list[int]:
    return [value.numerator, value.denominator]


def _runs(values: np.ndarray) -> list[list[int]]:
    """[count, value] of each run of equal values."""
    if not len(values):
        return []
    ends = np.append(np.flatnonzero(np.diff(values)), len(values) - 1)
    counts = np.diff(ends, prepend=-1)
    return np.column_stack([counts, values[ends]]).tolist()


def _unrolled(runs: list[list[int]]) -> Int64[np.ndarray, "n"]:
    counts, values = np.array(runs, np.int64).reshape(-1, 2).T
    if (counts < 1).any() or counts.sum() > 1 << 27:
        raise ValueError("a run of no values, or of too many")
    return np.repeat(values, counts)
