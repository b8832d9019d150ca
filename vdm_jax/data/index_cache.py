"""Indexes of a folder's video files, kept beside them, so that a later start opens no file.

One file, `.vdm_jax_index`, in the folder; where that cannot be written, one in the user's cache;
else nothing is kept. Each line is the CRC-32 of the rest of it, a space, and a JSON object with a
file's name below the folder, its size and its time of change, and the reason why it cannot be used;
or what `VideoFile` has and, after a tab, its index. The first line names the format and FFmpeg's
versions. Damaged lines are left out, and files whose size or time differ, so those are read again.
"""

import contextlib
import hashlib
import json
import os
import tempfile
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import av

from vdm_jax.data.video_container import Unusable
from vdm_jax.data.video_index import VideoFile

NAME = ".vdm_jax_index"
VERSION = 1  # of the lines; another one is not read
USER_CACHE = Path("~/.cache/vdm_jax/video_index")

# By path: (size, time of change in ns, what a source keeps of it, or why it cannot be used).
Entry = tuple[int, int, VideoFile | Unusable]
_KNOWN: dict[str, Entry] = {}  # of this process
_LOADED: dict[Path, tuple[int, int]] = {}  # files of `load`, with their stamps


def stamp(path: str | os.PathLike) -> tuple[int, int]:
    """(size in bytes, time of change in ns) of a file. Raises OSError."""
    stat = os.stat(path)
    return stat.st_size, stat.st_mtime_ns


def find(path: str, changed: tuple[int, int]) -> VideoFile | Unusable | None:
    """What this process knows of a file that has not changed since; `load` adds to it."""
    size, time, found = _KNOWN.get(path, (-1, -1, None))
    return found if (size, time) == changed else None


def remember(path: str, changed: tuple[int, int], found: VideoFile | Unusable) -> None:
    """Adds a file to what `find` finds and `save` writes."""
    _KNOWN[path] = (*changed, found)


def load(root: Path) -> None:
    """Reads what is kept of a folder's files; a damaged file of it is no error."""
    for place in _places(root):
        try:
            changed = stamp(place)
            if _LOADED.get(place) == changed:
                return
            lines = place.read_bytes().splitlines()
        except OSError:
            continue
        if not lines or lines[0] + b"\n" != _line(_header()):
            continue
        for line in lines[1:]:
            with contextlib.suppress(KeyError, TypeError, ValueError):
                content, packed = _parsed(line)
                path = str(root / content["name"])
                found = (
                    Unusable(content["unusable"])
                    if "unusable" in content
                    else VideoFile(path=path, packed=packed, **content["file"])
                )
                _KNOWN.setdefault(path, (content["size"], content["time"], found))
        _LOADED[place] = changed
        return


def save(root: Path, paths: Iterable[str]) -> Path | None:
    """Writes what this process knows of files in a folder. Returns where, or None where neither the
    folder nor the user's cache can be written."""
    lines = [_line(_header())]
    for path in paths:
        if path not in _KNOWN:
            continue
        size, time, found = _KNOWN[path]
        content = {"name": str(Path(path).relative_to(root)), "size": size, "time": time}
        packed = b""
        if isinstance(found, Unusable):
            content["unusable"] = str(found)
        else:
            names = ("frames", "fps", "constant", "note")
            content["file"] = {name: getattr(found, name) for name in names}
            packed = found.packed
        lines.append(_line(content, packed))
    for place in _places(root):
        with contextlib.suppress(OSError):
            place.parent.mkdir(parents=True, exist_ok=True)
            _write(place, b"".join(lines))
            return place
    return None


def _write(place: Path, content: bytes) -> None:
    """Whole or not at all, also where several processes write."""
    handle, temporary = tempfile.mkstemp(dir=place.parent, prefix=NAME, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)
        os.replace(temporary, place)
    except BaseException:
        os.unlink(temporary)
        raise


def _places(root: Path) -> list[Path]:
    digest = hashlib.sha256(os.fsencode(os.path.realpath(root))).hexdigest()[:24]
    return [root / NAME, USER_CACHE.expanduser() / f"{digest}"]


def _header() -> dict[str, object]:
    libraries = {name: list(av.library_versions[name]) for name in ("libavformat", "libavcodec")}
    return {"format": "vdm_jax video index", "version": VERSION, **libraries}


def _line(content: Mapping[str, object], packed: bytes = b"") -> bytes:
    text = json.dumps(content, separators=(",", ":")).encode()  # ASCII, whatever the name
    text += b"\t" + packed
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _parsed(line: bytes) -> tuple[dict, bytes]:
    """Raises ValueError for a damaged line."""
    digits, _, text = line.partition(b" ")
    if digits != b"%08x" % zlib.crc32(text):
        raise ValueError("its checksum differs")
    content, _, packed = text.partition(b"\t")
    return json.loads(content), packed
