"""The file of a model: its parameters and configuration, with a digest of every byte.

A safetensors file. The tensors are named by their path ("down_0/conv/kernel"). The metadata holds

- `format`: `FORMAT`. Files of `UNCHECKED` have no digest and are read with a warning.
- `config`: the configuration as JSON.
- `digest`: SHA-256 of the file, in which these 64 digits count as zeros.
- `base`, for an adapted model: the name and the digest of another model. The file then holds only
  the tensors that differ from the base's.

No code is executed while a file is read.
"""

import dataclasses
import functools
import hashlib
import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from vdm_jax.weights import tensor_file

FORMAT = "vdm_jax/2"
UNCHECKED = "vdm_jax/1"
_NO_DIGEST = "0" * 64
_CHUNK = 2**24  # bytes read at once
_ADVICE = "copy or download it again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Base:
    """The model that an adapted model is a difference from.

    Attributes:
      name: a shipped model's, or a path from the folder of the adapted model's file.
      digest: "sha256:" and the digest of the base's file.
    """

    name: str
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Header:
    """What a file says of its model.

    Attributes:
      config: the configuration as the file has it.
      digest: SHA-256, which names the model.
      base: None for a whole model.
    """

    config: Mapping[str, Any]
    digest: str
    base: Base | None


def write(
    path: str | Path,
    tensors: Mapping[str, np.ndarray],
    config: Mapping[str, Any],
    base: Base | None = None,
) -> Path:
    """Writes a file; an existing one is replaced once the new one is complete. Raises OSError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = {"format": FORMAT, "config": json.dumps(config), "digest": _NO_DIGEST}
    if base is not None:
        metadata["base"] = json.dumps(dataclasses.asdict(base))
    partial = path.with_name(f"{path.name}.partial")
    try:
        tensor_file.write(partial, tensors, metadata)
        at = _place(partial, _NO_DIGEST)
        assert at is not None, "the header was written with a place for the digest"
        digest = _hash(partial, at)
        with partial.open("r+b") as file:
            file.seek(at)
            file.write(digest.encode())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read_header(path: str | Path) -> Header:
    """The header of a file whose content was compared with its digest.

    A file is hashed once in a process, as long as its size and time stay the same. Raises OSError,
    and ValueError naming a file that is damaged or of another kind.
    """
    path = Path(path)
    stat = path.stat()
    return _checked(str(path), stat.st_size, stat.st_mtime_ns)


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """The tensors of a file that `read_header` accepts, by name."""
    read_header(path)
    return safetensors.numpy.load_file(path)


@functools.lru_cache(maxsize=256)
def _checked(path: str, size: int, modified: int) -> Header:
    del size, modified
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{path}: is damaged or no safetensors file ({error}); {_ADVICE}"
        ) from error
    kind = metadata.get("format")
    if kind not in (FORMAT, UNCHECKED):
        raise ValueError(
            f"{path}: not a model of this package, or damaged (format {kind!r} in its metadata, "
            f"not {FORMAT!r})"
        )
    try:
        digest = _verified(Path(path), metadata)
        base = Base(**json.loads(metadata["base"])) if "base" in metadata else None
        return Header(config=json.loads(metadata["config"]), digest=digest, base=base)
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: its metadata is damaged ({error!r}); {_ADVICE}") from error


def _verified(path: Path, metadata: Mapping[str, str]) -> str:
    if metadata["format"] == UNCHECKED:
        if "digest" in metadata:
            raise ValueError(f"{path}: is damaged: {UNCHECKED} has no digest; {_ADVICE}")
        warnings.warn(
            f"{path}: was written without a digest by an earlier version, so damage would go "
            "unnoticed; loading it and saving it again adds one",
            stacklevel=2,
        )
        return _hash(path, None)
    digest = metadata["digest"]
    place = _place(path, digest) if re.fullmatch("[0-9a-f]{64}", digest) else None
    if place is None or _hash(path, place) != digest:
        raise ValueError(
            f"{path}: is damaged or was edited: its SHA-256 is not the one that it was written "
            f"with; {_ADVICE}"
        )
    return digest


def _place(path: Path, digest: str) -> int | None:
    """Where in the file the digits of the digest begin."""
    with path.open("rb") as file:
        length = file.read(8)
        header = file.read(int.from_bytes(length, "little"))
    found = [match.start(1) for match in re.finditer(b'"digest":"([0-9a-f]{64})"', header)]
    at = [8 + place for place in found if header[place : place + 64] == digest.encode()]
    return at[0] if len(found) == 1 and at else None


def _hash(path: Path, place: int | None) -> str:
    """SHA-256 of a file, with 64 bytes at `place` as zeros' digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        if place is not None:
            digest.update(file.read(place))
            digest.update(_NO_DIGEST.encode())
            file.seek(place + 64)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
