"""A folder of captioned videos as shards: files that hold many videos, and what is known of each.

    OUT/shard-00000.array_record     a record a video: 8 bytes, the length of its description;
                                     the description, JSON; the encoded file, byte for byte
    OUT/shard-00000.json             the descriptions again, and the files that cannot be used

A description has the captions, and what reading needs to know of the file: nothing is demuxed when
a source is made. The JSON file is written last: a shard without one is not finished. A shard holds
the next files of the folder in order, up to a size, so it is a function of the folder's files.

array_record reads local files only. It takes a path such as gs://... for a file without records,
and so does not even fail.
"""

import contextlib
import dataclasses
import functools
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath

from vdm_jax.data import video_folder
from vdm_jax.data.source import DataError
from vdm_jax.data.video_container import DEMUXERS, Unusable
from vdm_jax.data.video_folder import VideoFolder
from vdm_jax.data.video_index import VideoFile

_FORMAT = 1
# Files are compressed already. One record is read at a time.
_WRITING = "group_size:1,uncompressed"
_READING = "readahead_buffer_size:0"


class VideoShards(VideoFolder):
    """Clips of the videos in shards that `write` wrote; otherwise as `VideoFolder`.

    Raises DataError where there are no shards, or they are on an object store.
    """

    def _add_all(self, setting: str) -> None:
        if "://" in setting:
            raise DataError(
                f"data.data_dir = {setting!r}: shards are read from local paths only, "
                "because array_record takes an object store's for empty files; mount the bucket "
                "(gs://: gcsfuse) and name the mounted folder, or copy the shards to a disk"
            )
        self._records: list[tuple[str, int]] = []  # of each file: (shard, record)
        for index in sorted(Path(self.directory).glob("shard-*.json")):
            self._add_shard(index)
        if not self._clips:
            found = self.summary() if self.skipped else "no shard-*.json in it"
            raise DataError(
                f"data.data_dir = {setting!r}: no usable video: {found}. Shards are written "
                "by vdm data shard --data_dir=FOLDER --out=DIR"
            )

    def _add_shard(self, index: Path) -> None:
        shard = index.with_suffix(".array_record")
        content = _parsed(index)
        size = shard.stat().st_size if shard.is_file() else 0
        if content["videos"] and size != content["bytes"]:
            raise DataError(
                f"{shard}: has {size} of {content['bytes']} bytes. Delete {index.name} and run vdm "
                "data shard again"
            )
        self.skipped |= content["skipped"]
        for record, row in enumerate(content["videos"]):
            packed = row["file"]["packed"].encode()
            file = VideoFile(**row["file"] | {"path": f"{shard}:{row['name']}", "packed": packed})
            self._add(Path(file.path), file, tuple(row["captions"]))
            if len(self._records) < len(self.files):
                self._records.append((str(shard), record))

    def _local(self, number: int) -> contextlib.AbstractContextManager[str]:
        return _unpacked(_read(*self._records[number]), self.files[number].path)


def write(
    folder: str | os.PathLike, out: str | os.PathLike, shard_bytes: int
) -> Iterator[tuple[int, int]]:
    """Writes the videos of a folder as shards; yields (shards that are there, shards in all).

    Shards that are there already are kept, so it can be stopped at any time and called again.

    Args:
      folder: with video files and captions, as `VideoFolder` reads it.
      out: a local folder, or a path of an object store that `etils.epath` can write, as gs://...
      shard_bytes: a shard takes files up to this size, and one in any case.

    Raises DataError where the folder holds no video, `out` holds shards of other files, or the
    object store cannot be written.
    """
    root, target = Path(folder).expanduser(), epath.Path(out)
    shards = list(_shards(root, shard_bytes))
    if not shards:
        raise DataError(f"--data_dir={folder}: no video file ({', '.join(DEMUXERS)}) in it")
    with _explained(out):
        target.mkdir(parents=True, exist_ok=True)
        there = {path.name: path for path in target.glob("shard-*.json")}
    planned = {f"shard-{number:05d}.json": names for number, names in enumerate(shards)}
    for name, path in there.items():
        if _parsed(path)["files"] != planned.get(name):
            raise DataError(
                f"--out={out}: {name} is of other files, or of another --shard_mb; choose another "
                "folder, or delete the shards"
            )
    for number, (name, files) in enumerate(planned.items(), start=1):
        if name not in there:
            with _explained(out):
                _write_shard(root, files, target / name)
        yield number, len(planned)


def _shards(root: Path, shard_bytes: int) -> Iterator[list[list[Any]]]:
    """The files of each shard: [name, bytes]."""
    files, total = [], 0
    for path in video_folder.find_files(root)[0]:
        size = path.stat().st_size
        if files and total + size > shard_bytes:
            yield files
            files, total = [], 0
        files.append([path.relative_to(root).as_posix(), size])
        total += size
    if files:
        yield files


def _write_shard(root: Path, files: list[list[Any]], index: epath.Path) -> None:
    found = ((name, root / name, *video_folder.look_at(root / name)[:2]) for name, _ in files)
    pack(index, files, found)


def pack(
    index: epath.Path,
    files: list[list[Any]],
    videos: Iterable[tuple[str, Path, VideoFile | Unusable, Sequence[str]]],
) -> None:
    """Writes a shard: the records, and then the index; a shard that has an index is complete.

    Args:
      index: its path, `shard-NNNNN.json`.
      files: what identifies the shard's content, in JSON's types; stored as it is.
      videos: of each its name, where it lies, its index or why it cannot be used, its captions. A
        file is read before the next is asked for.
    """
    rows, skipped = [], {}
    with tempfile.TemporaryDirectory() as scratch:
        local = Path(scratch, "shard")
        writer = ArrayRecordWriter(str(local), _WRITING)
        for name, path, file, captions in videos:
            if isinstance(file, Unusable):
                skipped[name] = str(file)
                continue
            fields = dataclasses.asdict(file) | {"packed": file.packed.decode()}
            del fields["path"]
            row = {"name": name, "captions": list(captions), "file": fields}
            description = json.dumps(row).encode()
            length = len(description).to_bytes(8, "little")
            writer.write(length + description + path.read_bytes())
            rows.append(row)
        writer.close()
        size = local.stat().st_size
        epath.Path(local).copy(index.with_suffix(".array_record"), overwrite=True)
    content = {"format": _FORMAT, "files": files, "bytes": size}
    content |= {"videos": rows, "skipped": skipped}
    written = index.with_suffix(".tmp")
    written.write_text(json.dumps(content))
    written.replace(index)


def _parsed(index: Path | epath.Path) -> dict[str, Any]:
    """An index that `_write_shard` wrote. Raises DataError."""
    try:
        content = json.loads(index.read_text())
        if content["format"] != _FORMAT:
            raise ValueError(f"format {content['format']}, this version reads {_FORMAT}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{index}: no index of a shard that can be read ({error})") from error
    return content


def _read(shard: str, record: int) -> bytes:
    """The encoded file of a record. Raises DataError where the shard is damaged."""
    try:
        content = _reader(shard).read([record])[0]
    except (RuntimeError, IndexError) as error:
        raise DataError(f"record {record} cannot be read ({error})") from error
    length = int.from_bytes(content[:8], "little")
    return content[8 + length :]


@functools.lru_cache(maxsize=64)
def _reader(shard: str) -> ArrayRecordReader:
    """Open in this process."""
    return ArrayRecordReader(shard, options=_READING)


@contextlib.contextmanager
def _unpacked(content: bytes, name: str) -> Iterator[str]:
    """A file with this content, while the context lasts; demuxers are chosen by its extension."""
    with tempfile.NamedTemporaryFile(suffix=Path(name).suffix) as file:
        file.write(content)
        file.flush()
        yield file.name


@contextlib.contextmanager
def _explained(out: str | os.PathLike) -> Iterator[None]:
    """Errors of an object store as a DataError that says what is missing."""
    try:
        yield
    except ImportError as error:
        raise DataError(
            f"--out={out}: {error}. Writing to gs:// needs the package gcsfs (pip install gcsfs)"
        ) from error
