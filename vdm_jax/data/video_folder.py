"""Clips of the video files in a directory tree, decoded when they are asked for.

Every file is looked at once, when the source is made: its frames' times are read without decoding,
and files that cannot be used are left out with the reason. A file gives as many clips as fit into
it one after the other; a clip is a file and a first frame, decoded from the key frame before it.

The caption of `clip.mp4` is in `clip.txt` (one caption a line) or `clip.json` (a string, a list of
strings, or an object with one of either under "caption", "captions" or "text"); of several one is
drawn. Without either it is the name of the folder, with spaces for underscores.
"""

import concurrent.futures
import dataclasses
import functools
import json
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8

from vdm_jax.data.source import ClipSource, DataError
from vdm_jax.stage.window import Part

# The demuxer by extension, so that a file's content cannot choose one that opens other files.
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
MAX_JITTER = 0.5  # of the frame interval; beyond it the frame rate is variable
MOST_SHOWN = 20  # skipped files that a summary names


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoFile:
    """What is known of a file without decoding it; times are in units of its time base."""

    path: str
    frames: int
    fps: float
    first_time: int
    ticks_per_frame: float


class _Unusable(Exception):
    """Why a file is left out."""


class VideoFolder(ClipSource):
    """Clips of all usable video files under a directory.

    fps: frames are taken at this rate; where a file has fewer they are repeated. 0: the file's own.
    frame_stride: then every so many frames. Frames are scaled to cover `image_size` (their height)
    by `image_width` (0 = square) and cropped to the centre.
    random_start: where a generator is given, a clip begins anywhere from its own first frame to the
    next clip's.

    `files` are those in use, `skipped` maps the others' paths to the reason. Raises DataError when
    there is no directory or no usable file.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        *,
        num_frames: int,
        image_size: int,
        image_width: int = 0,
        frame_stride: int = 1,
        fps: float = 0.0,
        random_start: bool = False,
    ):
        root = Path(directory).expanduser()
        if not root.is_dir():
            raise DataError(f"data.data_dir = {str(directory)!r}: there is no such directory")
        if fps < 0 or not math.isfinite(fps):
            raise DataError(f"data.fps = {fps}: must be 0 (each file's own) or more")
        self.directory = str(root)
        self.video_shape = (num_frames, image_size, image_width or image_size, 3)
        self._fps, self._stride = fps, frame_stride
        self.random_start = random_start
        self.files: list[VideoFile] = []
        self.skipped: dict[str, str] = {}
        self._captions: list[tuple[str, ...]] = []
        self._clips: list[tuple[int, float]] = []  # (file, first frame, not rounded)

        paths = [p for p in sorted(root.rglob("*")) if p.suffix.lower() in DEMUXERS and p.is_file()]
        if not paths:
            raise DataError(
                f"data.data_dir = {str(directory)!r}: no video file "
                f"({', '.join(DEMUXERS)}) in it or below it"
            )
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for path, found in zip(paths, pool.map(_look_at, paths), strict=True):
                try:
                    if isinstance(found, _Unusable):
                        raise found
                    file, captions = found
                    starts = self._starts(file)
                except _Unusable as reason:
                    self.skipped[str(path)] = str(reason)
                    continue
                self._clips += [(len(self.files), start) for start in starts]
                self.files.append(file)
                self._captions.append(captions)
        if not self._clips:
            raise DataError(f"data.data_dir = {str(directory)!r}: no usable file. {self.summary()}")

    def _step(self, file: VideoFile) -> float:
        """Frames of the file from one frame of a clip to the next."""
        return self._stride * (file.fps / self._fps if self._fps else 1.0)

    def _span(self, file: VideoFile) -> float:
        """Frames of the file from the first of a clip to its last."""
        return (self.video_shape[0] - 1) * self._step(file)

    def _starts(self, file: VideoFile) -> list[float]:
        step, span = self._step(file), self._span(file)
        if math.floor(span + 1e-6) > file.frames - 1:
            raise _Unusable(
                f"too short: {file.frames} frames at {file.fps:.5g} fps, "
                f"a clip takes {math.floor(span + 1e-6) + 1}"
            )
        hop = span + step  # clips follow each other without sharing frames
        count = math.floor((file.frames - 1 - span + 1e-6) / hop) + 1
        return [i * hop for i in range(count)]

    def __len__(self) -> int:
        return len(self._clips)

    def read(self, index: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """See `ClipSource`. A file that turns out to be damaged is told in a warning, and the next
        clip that can be read stands in for it."""
        return self._read(index, range(self.video_shape[0]), rng, "video")

    def read_part(
        self, index: int, part: Part, rng: np.random.Generator | None = None
    ) -> dict[str, Any]:
        """See `ClipSource`; decodes from the key frame before the first frame to the last."""
        result = self._read(index, part.frames, rng, "video")
        return {**result, "video": part.box(result["video"])}

    def read_frame(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """See `ClipSource`; decodes no further than the frame."""
        frame = int(rng.integers(self.video_shape[0]))
        result = self._read(index, [frame], rng, "image")
        return {**result, "image": result["image"][0]}

    def _read(self, index: int, frames: Sequence[int], rng, name: str) -> dict[str, Any]:
        for attempt in range(len(self)):
            number, start = self._clips[(index + attempt) % len(self)]
            file, step = self.files[number], self._step(self.files[number])
            if self.random_start and rng is not None:
                span = self._span(file)
                start = min(start + rng.uniform(0, span + step), file.frames - 1 - span)
            wanted = [math.floor(start + frame * step + 1e-6) for frame in frames]
            try:
                video = self._decode(number, wanted)
            except (av.error.FFmpegError, OSError, ValueError) as error:
                warnings.warn(f"{file.path}: {_plainly(error)}; another clip is used", stacklevel=2)
                continue
            captions = self._captions[number]
            caption = captions[0 if rng is None else int(rng.integers(len(captions)))]
            return {name: video, "caption": caption}
        raise DataError(f"{self.directory}: no clip can be decoded any more")

    def _decode(self, number: int, wanted: Sequence[int]) -> UInt8[np.ndarray, "f h w 3"]:
        """Frames of file `number`. Raises what `decode` does."""
        return decode(self.files[number], wanted, self.video_shape[1:3])

    def captions(self) -> Sequence[str]:
        return [text for number, _ in self._clips for text in self._captions[number]]

    def summary(self) -> str:
        frames, height, width = self.video_shape[:3]
        lines = [
            f"{self.directory}: {len(self)} clips of {frames} frames of {height} x {width} "
            f"from {len(self.files)} files"
        ]
        repeated = sum(self._step(file) < self._stride - 1e-3 for file in self.files)
        if repeated:
            lines.append(f"{repeated} files have less than {self._fps:g} fps: frames are repeated")
        if self.skipped:
            lines.append(f"skipped {len(self.skipped)} files:")
            lines += [f"  {p}: {why}" for p, why in list(self.skipped.items())[:MOST_SHOWN]]
        if len(self.skipped) > MOST_SHOWN:
            lines.append(f"  and {len(self.skipped) - MOST_SHOWN} more")
        return "\n".join(lines)


def decode(
    file: VideoFile, wanted: Sequence[int], size: tuple[int, int]
) -> UInt8[np.ndarray, "f {size[0]} {size[1]} 3"]:
    """The frames with the numbers `wanted` (ascending), scaled and cropped to `size` (h, w).

    Raises DataError where the file ends or breaks before the last of them, and PyAV's errors.
    """
    found = _decode(file, wanted, size, seek=True)
    if found is None:  # the key frame before is not where the file's index says
        found = _decode(file, wanted, size, seek=False)
    if found is None or len(found) != len(set(wanted)):
        raise DataError(f"ends before frame {wanted[-1]} of {file.frames}")
    return np.stack([found[number] for number in wanted])


def _decode(
    file: VideoFile, wanted: Sequence[int], size: tuple[int, int], seek: bool
) -> dict[int, np.ndarray] | None:
    """Frames by number; None where decoding starts after the first that is wanted."""
    found: dict[int, np.ndarray] = {}
    reformatter = VideoReformatter()
    with _open(file.path) as container:
        stream = container.streams.video[0]
        if seek and wanted[0] > 0:
            time = file.first_time + int(wanted[0] * file.ticks_per_frame)
            container.seek(time, stream=stream, backward=True)
        for count, frame in enumerate(container.decode(stream)):
            if frame.pts is not None:
                number = round((frame.pts - file.first_time) / file.ticks_per_frame)
            elif seek:
                return None
            else:
                number = count
            if not found and number > wanted[0]:
                return None
            if number in wanted:
                found[number] = _cropped(frame, size, reformatter)
            if number >= wanted[-1]:
                break
    return found


def _cropped(
    frame: av.VideoFrame, size: tuple[int, int], reformatter: VideoReformatter
) -> np.ndarray:
    turns = round(frame.rotation / 90)
    # As it is stored; it is turned last, to be as the camera was held.
    height, width = size if turns % 2 == 0 else size[::-1]
    scale = max(height / frame.height, width / frame.width)
    full_height = max(height, round(frame.height * scale))
    full_width = max(width, round(frame.width * scale))
    image = reformatter.reformat(
        frame, width=full_width, height=full_height, format="rgb24", interpolation="BICUBIC"
    ).to_ndarray()
    top, left = (full_height - height) // 2, (full_width - width) // 2
    return np.rot90(image[top : top + height, left : left + width], turns).copy()


def _open(path: str):
    demuxer = DEMUXERS[Path(path).suffix.lower()]
    return av.open(path, format=demuxer, options={"protocol_whitelist": "file"})


def _look_at(path: Path) -> tuple[VideoFile, tuple[str, ...]] | _Unusable:
    """Runs in threads: a file that is left out is returned, not raised."""
    try:
        stat = path.stat()
        return _probe(str(path), stat.st_mtime_ns, stat.st_size), _sidecar(path)
    except _Unusable as reason:
        return reason
    except Exception as error:  # whatever a damaged file makes a demuxer or a codec raise
        return _Unusable(f"unreadable: {_plainly(error)}")


def _plainly(error: Exception) -> str:
    """An error's text, without the number and the path that PyAV adds."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


@functools.cache
def _probe(path: str, mtime: int, size: int) -> VideoFile:
    """Reads frame times and decodes the first frame. Cached while the file stays the same."""
    del mtime, size
    with _open(path) as container:
        if not container.streams.video:
            raise _Unusable("has no video")
        stream = container.streams.video[0]
        times = sorted(_times(container, stream))
        time_base = float(stream.time_base)
    if len(times) < 2:
        raise _Unusable(f"too short: {len(times)} frames")
    steps = np.diff(times)
    ticks = (times[-1] - times[0]) / (len(times) - 1)
    # One tick more or less is rounding: some formats count in milliseconds.
    if ticks <= 0 or np.abs(steps - ticks).max() > max(MAX_JITTER * ticks, 1.0):
        raise _Unusable(
            "variable frame rate: frames last "
            f"{steps.min() * time_base:.3g} to {steps.max() * time_base:.3g} s"
        )
    with _open(path) as container:
        if next(container.decode(video=0), None) is None:
            raise _Unusable("unreadable: no frame can be decoded")
    return VideoFile(
        path=path,
        frames=len(times),
        fps=1 / (ticks * time_base),
        first_time=times[0],
        ticks_per_frame=ticks,
    )


def _times(container, stream) -> Iterator[int]:
    for packet in container.demux(stream):
        if packet.size and not packet.is_discard:
            time = packet.pts if packet.pts is not None else packet.dts
            if time is not None:
                yield time


def _sidecar(path: Path) -> tuple[str, ...]:
    """The captions beside a file, or else its folder's name."""
    text, jason = path.with_suffix(".txt"), path.with_suffix(".json")
    try:
        if text.is_file():
            captions = text.read_text(encoding="utf-8").splitlines()
        elif jason.is_file():
            captions = _json_captions(json.loads(jason.read_text(encoding="utf-8")))
        else:
            captions = [path.absolute().parent.name.replace("_", " ")]
    except (OSError, ValueError) as error:
        raise _Unusable(f"its caption cannot be read: {error}") from None
    captions = tuple(filter(None, (caption.strip() for caption in captions)))
    if not captions:
        raise _Unusable("its caption is empty")
    return captions


def _json_captions(content: Any) -> list[str]:
    if isinstance(content, dict):
        names = [name for name in ("caption", "captions", "text") if name in content]
        if not names:
            raise ValueError("the JSON object has no caption, captions or text")
        content = content[names[0]]
    content = [content] if isinstance(content, str) else content
    if not isinstance(content, list) or not all(isinstance(text, str) for text in content):
        raise ValueError("the JSON's caption is neither a string nor a list of strings")
    return content
