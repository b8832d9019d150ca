"""Clips of the video files in a directory tree, decoded when they are asked for.

Every file is read once, when the first source of its folder is made: `video_indexing` finds the
time of every frame, and files that cannot be used are left out with the reason. What it finds is
kept beside the files (`index_cache`). A file gives as many clips as fit into it one after the
other; a clip is a file and a first frame, decoded from the key frame before it.

The caption of `clip.mp4` is in `clip.txt` (one caption a line) or `clip.json` (a string, a list of
strings, or an object with one of either under "caption", "captions" or "text"); of several one is
drawn. Without either it is the name of the folder, with spaces for underscores.
"""

import concurrent.futures
import contextlib
import json
import math
import os
import stat
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
from jaxtyping import UInt8

from vdm_jax.data import index_cache, text_files, video_container, video_indexing, video_reader
from vdm_jax.data.source import ClipSource, DataError
from vdm_jax.data.video_container import DEMUXERS, Unusable
from vdm_jax.data.video_index import VideoFile, VideoIndex
from vdm_jax.stage.window import Part

MOST_SHOWN = 200  # files of a kind that a summary names
_SAVE_SECONDS = 60.0  # from one saving of indexes to the next, while files are read


class VideoFolder(ClipSource):
    """Clips of all usable video files under a directory.

    fps: frames are taken at this rate; where a file has fewer they are repeated. 0: the file's own.
    frame_stride: then every so many frames. Frames are scaled to cover `image_size` (their height)
    by `image_width` (0 = square) and cropped to the centre, upright and of square pixels. A file of
    variable frame rate is resampled by time: with `fps` = 0 at its mean rate, and each frame is the
    one that is shown at its time.
    random_start: where a generator is given, a clip begins anywhere from its own first frame to the
    next clip's.
    aspects: width over height of all sizes that are trained on. Files that are nearer to another of
    them than to this size's are left out. () = none are.

    `files` are those in use, `skipped` maps the others' paths to the reason, `fps` is the setting.
    Raises DataError when there is no directory or no usable file.
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
        aspects: Sequence[float] = (),
    ):
        if fps < 0 or not math.isfinite(fps):
            raise DataError(f"data.fps = {fps}: must be 0 (each file's own) or more")
        self.directory = str(Path(directory).expanduser())
        self.video_shape = (num_frames, image_size, image_width or image_size, 3)
        self.fps, self._stride = fps, frame_stride
        self.random_start = random_start
        self._aspects = tuple(aspects)
        self.files: list[VideoFile] = []
        self.skipped: dict[str, str] = {}
        self._decoded: dict[int, VideoIndex] = {}  # in the place of an index that was wrong
        self._captions: list[tuple[str, ...]] = []
        self._clips: list[tuple[int, float]] = []  # (file, first frame, not rounded)
        self._add_all(str(directory))

    def _add_all(self, setting: str) -> None:
        """Adds what is in the directory. setting: how it was named. Raises DataError."""
        root = Path(self.directory)
        if not root.is_dir():
            raise DataError(f"data.data_dir = {setting!r}: there is no such directory")
        paths, self.skipped = find_files(root)
        if not paths:
            raise DataError(
                f"data.data_dir = {setting!r}: no video file "
                f"({', '.join(DEMUXERS)}) in it or below it"
            )
        index_cache.load(root)
        fresh, saved = False, time.monotonic()
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for path, (found, captions, new) in zip(paths, pool.map(look_at, paths), strict=True):
                self._add(path, found, captions)
                fresh |= new
                if fresh and time.monotonic() - saved > _SAVE_SECONDS:
                    index_cache.save(root, map(str, paths))
                    fresh, saved = False, time.monotonic()
        if fresh:
            index_cache.save(root, map(str, paths))
        if not self._clips:
            raise DataError(f"data.data_dir = {setting!r}: no usable file. {self.summary()}")

    def _add(self, path: Path, found: VideoFile | Unusable, captions: tuple[str, ...]) -> None:
        try:
            if isinstance(found, Unusable):
                raise found
            self._check_aspect(found)
            starts = self._starts(found)
        except Unusable as reason:
            self.skipped[str(path)] = str(reason)
            return
        self._clips += [(len(self.files), start) for start in starts]
        self.files.append(found)
        self._captions.append(captions)

    def _check_aspect(self, file: VideoFile) -> None:
        """Raises Unusable for a file whose frames are nearer to another size's."""
        if not self._aspects:
            return
        stored = file.index.geometry
        own = stored.width * float(stored.aspect) / stored.height
        own = 1 / own if stored.swap else own
        height, width = self.video_shape[1:3]
        nearest = min(self._aspects, key=lambda aspect: abs(math.log(aspect / own)))
        if not math.isclose(nearest, width / height):
            raise Unusable(f"width over height is {own:.3g}: nearer to another of data.sizes")

    def _step(self, file: VideoFile) -> float:
        """Frames of the file from one frame of a clip to the next."""
        return self._stride * (file.fps / self.fps if self.fps else 1.0)

    def _span(self, file: VideoFile) -> float:
        """Frames of the file from the first of a clip to its last."""
        return (self.video_shape[0] - 1) * self._step(file)

    def _starts(self, file: VideoFile) -> list[float]:
        step, span = self._step(file), self._span(file)
        if file.frames == 1 and self.video_shape[0] == 1:
            return [0.0]  # the rate of one frame means nothing
        if math.floor(span + 1e-6) > file.frames - 1 or file.frames == 1:
            raise Unusable(
                f"too short: {file.frames} frames at {file.fps:.5g} fps, "
                f"a clip takes {max(math.floor(span + 1e-6) + 1, 2)}"
            )
        hop = span + step  # clips follow each other without sharing frames
        # The last frame is shown until the next one would be.
        count = math.ceil((file.frames - 1e-6 - span) / hop)
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

    def read_undamaged(self, index: int) -> dict[str, Any]:
        """As `read`, but no other clip stands in. Raises DataError where the file is damaged."""
        return self._read_one(index, range(self.video_shape[0]), None, "video")

    def _read(self, index: int, frames: Sequence[int], rng, name: str) -> dict[str, Any]:
        for attempt in range(len(self)):
            try:
                return self._read_one((index + attempt) % len(self), frames, rng, name)
            except DataError as error:
                warnings.warn(f"{error}; another clip is used", stacklevel=2)
        raise DataError(f"{self.directory}: no clip can be decoded any more")

    def _read_one(self, index: int, frames: Sequence[int], rng, name: str) -> dict[str, Any]:
        number, start = self._clips[index]
        file, step = self.files[number], self._step(self.files[number])
        if self.random_start and rng is not None:
            span = self._span(file)
            start = min(start + rng.uniform(0, span + step), max(file.frames - 1 - span, 0.0))
        places = start + step * np.array(frames)
        try:
            video = self._decode(number, places)
        except (av.error.FFmpegError, OSError, ValueError) as error:
            reason = video_container.reason_of(error)
            raise DataError(f"{text_files.shown(file.path)}: {reason}") from error
        captions = self._captions[number]
        caption = captions[0 if rng is None else int(rng.integers(len(captions)))]
        return {name: video, "caption": caption}

    def _decode(self, number: int, places: np.ndarray) -> UInt8[np.ndarray, "f h w 3"]:
        """Frames at places in mean frame intervals. Raises what `video_reader.decode` does."""
        size, index = self.video_shape[1:3], self._decoded.get(number) or self.files[number].index
        with self._local(number) as path:
            try:
                return video_reader.decode(path, index, index.frames_at(places), size)
            except video_reader.IndexMismatch:
                if index.decoded:
                    raise
            # The packets told something else than the decoder.
            better = video_indexing.build(path, decode=True)
            places = places * (index.ticks / better.ticks)
            if places[-1] > len(better) - 0.5:
                raise DataError(f"ends before frame {math.floor(places[-1])}")
            self._decoded[number] = better
            return video_reader.decode(path, better, better.frames_at(places), size)

    def _local(self, number: int) -> contextlib.AbstractContextManager[str]:
        """A path at which file `number` can be opened, while the context lasts."""
        return contextlib.nullcontext(self.files[number].path)

    def captions(self) -> Sequence[str]:
        return [text for number, _ in self._clips for text in self._captions[number]]

    def file_of(self, index: int) -> VideoFile:
        """The file that a clip is from."""
        return self.files[self._clips[index][0]]

    def captions_of(self, index: int) -> Sequence[str]:
        """The captions of a clip, of which `read` draws one."""
        return self._captions[self._clips[index][0]]

    def summary(self) -> str:
        frames, height, width = self.video_shape[:3]
        lines = [
            f"{text_files.shown(self.directory)}: {len(self)} clips of {frames} frames of "
            f"{height} x {width} from {len(self.files)} files"
        ]
        repeated = sum(self._step(file) < self._stride - 1e-3 for file in self.files)
        if repeated:
            lines.append(f"{repeated} files have less than {self.fps:g} fps: frames are repeated")
        variable = sum(not file.constant for file in self.files)
        if variable:
            lines.append(f"{variable} files have a variable frame rate: frames are taken by time")
        notes = {file.path: file.note for file in self.files if file.note}
        for what, reasons in (
            (f"{len(notes)} files can be used in part:", notes),
            (f"skipped {len(self.skipped)} files or folders:", self.skipped),
        ):
            lines += [what] if reasons else []
            for path, reason in list(reasons.items())[:MOST_SHOWN]:
                lines.append(f"  {text_files.shown(path)}: {reason}")
            if len(reasons) > MOST_SHOWN:
                lines.append(f"  and {len(reasons) - MOST_SHOWN} more")
        return "\n".join(lines)


def find_files(root: Path) -> tuple[list[Path], dict[str, str]]:
    """The video files in a folder and below it, sorted, and what is left out with the reason.

    Links to folders are followed. A folder is read once, by its own name where it has one below
    `root`, else by the first link to it.
    """
    paths: list[Path] = []
    problems: dict[str, str] = {}
    links, seen = [str(root)], set()

    def unlisted(error: OSError) -> None:
        problems[str(error.filename)] = f"cannot be listed: {video_container.reason_of(error)}"

    while links:
        top = links.pop(0)
        found: list[str] = []
        for folder, names, files in os.walk(top, onerror=unlisted):
            try:
                identity = os.stat(folder)
            except OSError as error:  # it has gone
                unlisted(error)
                names.clear()
                continue
            if (identity.st_dev, identity.st_ino) in seen:
                problems[folder] = "leads to a folder that is read already"
                names.clear()
                continue
            seen.add((identity.st_dev, identity.st_ino))
            found += [link for name in names if os.path.islink(link := os.path.join(folder, name))]
            for name in files:
                path = Path(folder, name)
                if path.suffix.lower() not in DEMUXERS:
                    continue
                if path.is_file():
                    paths.append(path)
                else:
                    problems[str(path)] = _no_file(path)
        links += sorted(found)
    return sorted(paths), problems


def _no_file(path: Path) -> str:
    try:
        kind = path.stat().st_mode
    except OSError as error:
        return f"leads to no file: {video_container.reason_of(error)}"
    return f"is no file but {'a folder' if stat.S_ISDIR(kind) else 'a pipe or a device'}"


def look_at(path: Path) -> tuple[VideoFile | Unusable, tuple[str, ...], bool]:
    """(what is known of a file, its captions, whether it was read for that).

    Runs in threads: why a file is left out is returned, not raised.
    """
    fresh = False
    try:
        changed = index_cache.stamp(path)
        found = index_cache.find(str(path), changed)
        if found is None:
            fresh = True
            found = _read(path)
            index_cache.remember(str(path), changed, found)
        return found, (() if isinstance(found, Unusable) else captions_beside(path)), fresh
    except Unusable as reason:
        return reason, (), fresh
    except Exception as error:  # whatever a damaged file makes a demuxer or a codec raise
        return Unusable(f"unreadable: {video_container.reason_of(error)}"), (), fresh


def _read(path: Path) -> VideoFile | Unusable:
    """Raises where another attempt may succeed, such as OSError."""
    try:
        return VideoFile.of(str(path), video_indexing.build(path))
    except Unusable as reason:
        return reason
    except av.error.FFmpegError as error:
        if isinstance(error, OSError | MemoryError):
            raise
        return Unusable(f"unreadable: {video_container.reason_of(error)}")


def captions_beside(path: Path) -> tuple[str, ...]:
    """The captions beside a file, or else its folder's name. Raises Unusable."""
    text, jason = path.with_suffix(".txt"), path.with_suffix(".json")
    try:
        if text.is_file():
            captions = text_files.read_text(text).splitlines()
        elif jason.is_file():
            captions = _json_captions(json.loads(text_files.read_text(jason)))
        else:
            captions = [text_files.readable(path.absolute().parent.name).replace("_", " ")]
    except (OSError, ValueError, RecursionError) as error:
        raise Unusable(f"its caption cannot be read: {error}") from None
    captions = tuple(filter(None, (text_files.clean(caption).strip() for caption in captions)))
    if not captions:
        raise Unusable("its caption is empty")
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
