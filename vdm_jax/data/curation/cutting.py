"""Clips of a film as files of their own.

A film's coded frames are copied where that gives exactly the clip, or one that is shorter by less
than what was trimmed anyway: it begins at a key frame, and the packets up to its end need none
beyond it. Other clips are coded again.
"""

import os
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from vdm_jax.data import video_container
from vdm_jax.data.curation import film
from vdm_jax.data.curation.clips import Clip
from vdm_jax.data.curation.settings import Output
from vdm_jax.data.source import DataError
from vdm_jax.data.video_container import NONE
from vdm_jax.data.video_index import VideoIndex

_COPIED = ("h264", "hevc", "av1", "libdav1d", "vp9", "libvpx-vp9", "mpeg4")  # that MP4 takes
_BT709 = 1  # its primaries, transfer and matrix (ITU-T H.273)
_TICKS = 90000


def write(
    path: str | os.PathLike,
    index: VideoIndex,
    clips: Sequence[Clip],
    targets: Sequence[Path],
    settings: Output,
    *,
    codec: str,
    slack: float,
) -> list[Clip]:
    """Writes clips of a film, in order, as MP4 files without sound.

    Args:
      clips: in order, without overlap.
      targets: a path for each.
      codec: of the film, FFmpeg's name.
      slack: seconds that a copied clip may lack at each end.

    Returns the frames that each file has. Raises DataError where the film is damaged, PyAV's errors
    and OSError.
    """
    written: list[Clip] = []
    coded: list[tuple[int, Clip, Path]] = []
    for place, (clip, target) in enumerate(zip(clips, targets, strict=True)):
        inner = None
        if settings.copy and not settings.side and codec in _COPIED:
            inner = copyable(index, clip, slack)
        if inner is not None and _copy(path, index, inner, target):
            written.append(inner)
        else:
            coded.append((place, clip, target))
            written.append(clip)
    if coded:
        _encode(path, index, [(clip, target) for _, clip, target in coded], settings)
    return written


def copyable(index: VideoIndex, clip: Clip, slack: float) -> Clip | None:
    """The longest clip inside of this one whose packets can be copied; None where none is long
    enough. slack: seconds that it may lack at each end."""
    geometry = index.geometry
    turned = geometry.swap or geometry.flip_rows or geometry.flip_columns
    if not len(index.packets) or geometry.aspect != 1 or turned:
        return None
    frames = round(slack * index.fps)
    keys = index.keys[:, 0]
    starts = keys[(keys >= clip.start) & (keys <= clip.start + frames)]
    if not len(starts):
        return None
    start = int(starts[0])
    first = int(index.keys[np.searchsorted(keys, start), 1])
    for end in range(clip.end, max(clip.end - frames, start + 1) - 1, -1):
        packets = np.sort(index.packets[start:end])
        if packets[0] == first and packets[-1] == first + len(packets) - 1:
            return Clip(start, end)
    return None


def _copy(path: str | os.PathLike, index: VideoIndex, clip: Clip, target: Path) -> bool:
    """Copies packets; False where they are not found."""
    row = index.keys[np.searchsorted(index.keys[:, 0], clip.start)]
    aim = int(row[3]) if row[3] != NONE else int(row[2])
    wanted = clip.end - clip.start
    with (
        video_container.open_video(path, index.demuxer) as source,
        target.open("wb") as file,
        av.open(file, "w", format="mp4") as container,
    ):
        stream = video_container.video_stream(source)
        copied = container.add_stream_from_template(stream)
        source.seek(aim, stream=stream, backward=True)
        found, first = 0, None
        for packet in source.demux(stream):
            if not packet.size:
                break
            if first is None:
                if video_container.stamps_of(packet) != tuple(row[2:]):
                    continue
                first = packet.dts if packet.dts is not None else packet.pts
            packet.pts -= first
            packet.dts = None if packet.dts is None else packet.dts - first
            packet.stream = copied
            container.mux(packet)
            found += 1
            if found == wanted:
                break
    return found == wanted


def _encode(
    path: str | os.PathLike,
    index: VideoIndex,
    clips: Sequence[tuple[Clip, Path]],
    settings: Output,
) -> None:
    """Decodes the film up to the last of the clips, and codes these as H.264."""
    waiting = list(clips)
    side = settings.side or min(index.geometry.upright_size)
    seconds = film.frame_seconds(index)
    writer = None
    try:
        for number, frame in enumerate(film.frames(path, index)):
            clip, target = waiting[0]
            if number < clip.start:
                continue
            picture = frame.picture(side)
            if writer is None:
                writer = _Writer(target, picture.shape[:2], index.fps, settings.quality)
            writer.add(picture, float(seconds[number] - seconds[clip.start]))
            if number == clip.end - 1:
                writer.close()
                writer = None
                waiting.pop(0)
                if not waiting:
                    return
    finally:
        if writer is not None:
            writer.close()
    raise DataError(f"ends before frame {waiting[0][0].end}")


class _Writer:
    """An H.264 file that takes frames one by one, each with its time."""

    def __init__(self, target: Path, size: tuple[int, int], fps: float, quality: int):
        self._file = target.open("wb")
        self._container = av.open(self._file, "w", format="mp4")
        rate = Fraction(fps).limit_denominator(1001)
        stream = self._stream = self._container.add_stream("libx264", rate=rate)
        # 4:2:0 needs even sides; what is odd loses a row or a column.
        stream.height, stream.width = (max(2, side - side % 2) for side in size)
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": str(quality), "preset": "veryfast", "threads": "1"}
        context = stream.codec_context
        context.time_base = Fraction(1, _TICKS)
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = ColorRange.MPEG

    def add(self, picture: np.ndarray, seconds: float) -> None:
        height, width = self._stream.height, self._stream.width
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture[:height, :width]))
        frame = frame.reformat(
            format="yuv420p",
            dst_colorspace=Colorspace.ITU709,
            dst_color_range=ColorRange.MPEG,
            interpolation="BICUBIC",
        )
        frame.pts, frame.time_base = round(seconds * _TICKS), Fraction(1, _TICKS)
        self._container.mux(self._stream.encode(frame))

    def close(self) -> None:
        self._container.mux(self._stream.encode())
        self._container.close()
        self._file.close()
