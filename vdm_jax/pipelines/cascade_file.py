"""The file of a cascade: its stages in order and fields of their samplers, with a digest.

JSON, beside the stages' own files. It holds

- `format`: `FORMAT`. Files of `UNCHECKED` have no digest and are read with a warning.
- `digest`: SHA-256 of the file, in which these 64 digits count as zeros.
- `stages`: their names in order.
- `sample`: {stage: {field of its sampler: value}}, of the fields that differ from its own.
"""

import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAME = "cascade.json"
FORMAT = "vdm_jax_cascade/2"
UNCHECKED = "vdm_jax_cascade/1"
_NO_DIGEST = b"0" * 64
_DIGEST = re.compile(rb'"digest": "([0-9a-f]{64})"')
_ADVICE = "copy or download it again"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Content:
    """What a file says of its cascade.

    Attributes:
      stages: their names in order.
      sample: {stage: {field of its sampler: value}}.
      digest: SHA-256, which names the file's content.
    """

    stages: Sequence[str]
    sample: Mapping[str, Mapping[str, Any]]
    digest: str


def write(
    folder: str | Path, stages: Sequence[str], sample: Mapping[str, Mapping[str, Any]]
) -> Path:
    """Writes the file of a folder; an existing one is replaced once the new one is complete.

    Raises OSError.
    """
    path = Path(folder) / NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    saved = {
        "format": FORMAT,
        "digest": _NO_DIGEST.decode(),
        "stages": list(stages),
        "sample": {name: dict(fields) for name, fields in sample.items()},
    }
    text = json.dumps(saved, indent=2).encode() + b"\n"
    partial = path.with_name(f"{path.name}.partial")
    try:
        partial.write_bytes(text.replace(_NO_DIGEST, _hash(text).encode(), 1))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def read(folder: str | Path) -> Content:
    """The file of a folder, whose content was compared with its digest.

    Raises OSError, and ValueError naming a file that is damaged or of another kind.
    """
    path = Path(folder) / NAME
    text = path.read_bytes()
    try:
        saved = json.loads(text.decode())
        kind = saved["format"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}: is damaged, or no file of a cascade ({error!r})") from error
    if kind not in (FORMAT, UNCHECKED):
        raise ValueError(
            f"{path}: no cascade of this package, or damaged: format = {kind!r}: must be {FORMAT!r}"
        )
    digest = _verified(path, text, saved)
    try:
        stages, sample = saved["stages"], saved["sample"]
        if not all(isinstance(name, str) for name in stages):
            raise TypeError(stages)
        sample = {name: dict(fields) for name, fields in sample.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: is damaged ({error!r}); {_ADVICE}") from error
    return Content(stages=tuple(stages), sample=sample, digest=digest)


def _verified(path: Path, text: bytes, saved: Mapping[str, Any]) -> str:
    if saved["format"] == UNCHECKED:
        if set(saved) != {"format", "stages", "sample"}:
            raise ValueError(
                f"{path}: is damaged: {UNCHECKED} has format, stages and sample, not "
                f"{', '.join(saved)}; {_ADVICE}"
            )
        warnings.warn(
            f"{path}: was written without a digest by an earlier version, so damage would go "
            "unnoticed; vdm train --config=CASCADE --workdir=DIR writes it again with one",
            stacklevel=3,
        )
        return hashlib.sha256(text).hexdigest()
    found = _DIGEST.findall(text)
    zeroed = text.replace(found[0], _NO_DIGEST, 1) if len(found) == 1 else b""
    if not zeroed or _hash(zeroed) != found[0].decode():
        raise ValueError(
            f"{path}: is damaged or was edited: its SHA-256 is not the one that it was written "
            f"with; {_ADVICE}"
        )
    return found[0].decode()


def _hash(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
