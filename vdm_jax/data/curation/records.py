"""What is known of each film, one file a film, written whole or not at all.

    OUT/films/KEY.json     of each name below the folder of films: size and time of change, and the
                           digest of its content, or why it cannot be used
    OUT/measured/DIGEST.json   of each content: the film, and what was measured of it

KEY is a digest of the name. Two names with the same content share one measurement.
"""

import dataclasses
import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Self

from vdm_jax.data import text_files
from vdm_jax.data.curation import files
from vdm_jax.data.curation.film import Film
from vdm_jax.data.curation.settings import digest
from vdm_jax.data.curation.stages import Measured
from vdm_jax.data.source import DataError

_FORMAT = 1
_HELD = 4  # contents in memory


@dataclasses.dataclass(frozen=True, kw_only=True)
class Name:
    """A file of the folder of films.

    Attributes:
      name: relative to the folder, with bytes that are not UTF-8 as surrogates.
      size, changed: bytes, and time of change in ns, when it was read.
      digest: of its content; "" where it cannot be used.
      failure: why it cannot be used; "" where it can.
    """

    name: str
    size: int
    changed: int
    digest: str = ""
    failure: str = ""

    @property
    def shown(self) -> str:
        return text_files.shown(self.name)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """A film and what was measured of it.

    Attributes:
      failure: why it could not be measured; "" where it could.
      failed_plan: `Plan.identity` of the attempt that failed. Another plan is another attempt.
    """

    film: Film
    measured: Measured | None = None
    failure: str = ""
    failed_plan: str = ""

    def to_json(self) -> dict[str, Any]:
        measured = None if self.measured is None else self.measured.to_json()
        failed = {"failure": self.failure, "failed_plan": self.failed_plan}
        return {"film": self.film.to_json(), "measured": measured, **failed}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        measured = values["measured"]
        return cls(
            film=Film.from_json(values["film"]),
            measured=None if measured is None else Measured.from_json(measured),
            failure=values["failure"],
            failed_plan=values["failed_plan"],
        )


class Contents(Mapping[str, Content]):
    """The contents of some digests, read when they are asked for and not held: thumbnails and
    hashes of many films do not fit into memory."""

    def __init__(self, records: "Records", digests: Iterable[str]):
        self._digests = dict.fromkeys(digests)
        self._read = functools.lru_cache(maxsize=_HELD)(records.content)

    def __getitem__(self, digest: str) -> Content:
        content = self._read(digest) if digest in self._digests else None
        if content is None:
            raise KeyError(digest)
        return content

    def __iter__(self) -> Iterator[str]:
        return iter(self._digests)

    def __len__(self) -> int:
        return len(self._digests)


class Records:
    """The records below a folder. Damaged files count as missing, so that they are made again."""

    def __init__(self, out: str | os.PathLike):
        self.out = Path(out)
        self._names, self._contents = self.out / "films", self.out / "measured"

    def make_folders(self) -> None:
        for folder in (self._names, self._contents):
            folder.mkdir(parents=True, exist_ok=True)

    def name(self, name: str) -> Name | None:
        content = _read(self._name_path(name))
        return None if content is None else Name(**content)

    def put_name(self, name: Name) -> None:
        _write(self._name_path(name.name), dataclasses.asdict(name))

    def content(self, digest: str) -> Content | None:
        values = _read(self._contents / f"{digest}.json")
        return None if values is None else Content.from_json(values)

    def put_content(self, content: Content) -> None:
        _write(self._contents / f"{content.film.digest}.json", content.to_json())

    def names(self) -> Iterator[Name]:
        """All names, in order."""
        found = (_read(path) for path in self._names.glob("*.json"))
        yield from sorted((Name(**one) for one in found if one), key=lambda one: one.name)

    def forget_others(self, names: set[str]) -> None:
        """Deletes the records of names that are no longer in the folder of films."""
        for one in list(self.names()):
            if one.name not in names:
                self._name_path(one.name).unlink(missing_ok=True)

    def _name_path(self, name: str) -> Path:
        return self._names / f"{digest(name)}.json"


def _write(path: Path, content: dict[str, Any]) -> None:
    files.replace(path, json.dumps({"format": _FORMAT, **content}).encode())


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (ValueError, OSError):
        return None
    if not isinstance(content, dict):
        return None
    if content.pop("format", None) != _FORMAT:
        raise DataError(f"{path}: written by another version; use another --out")
    return content
