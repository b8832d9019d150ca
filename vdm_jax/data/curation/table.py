"""The table of all clips: scores, where each clip is from, and why it is kept or not."""

import importlib.metadata
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import pyarrow as pa
import pyarrow.parquet
import scenedetect

from vdm_jax.data import text_files
from vdm_jax.data.curation import files
from vdm_jax.data.curation.engine import Work
from vdm_jax.data.curation.filters import ClipRow
from vdm_jax.data.source import DataError

NAME = "clips.parquet"
_ABOUT = "vdm_jax"


def write(out: Path, rows: Sequence[ClipRow], work: Work) -> Path:
    """Writes `OUT/clips.parquet`, whole or not at all, and returns its path.

    One column for each field of `filters.ClipRow`, and one for each score. The file's metadata has,
    as JSON under "vdm_jax", the folder of films, the settings, and the versions of the package and
    of FFmpeg.
    """
    names = sorted({name for row in rows for name in row.scores})
    columns = {
        "film": pa.array([text_files.shown(row.film) for row in rows], pa.string()),
        "digest": pa.array([row.digest for row in rows], pa.string()),
        "clip": pa.array([row.name for row in rows], pa.string()),
        "kept": pa.array([row.kept for row in rows], pa.bool_()),
        "reason": pa.array([text_files.clean(row.reason) for row in rows], pa.string()),
        "copy_of": pa.array([text_files.shown(row.copy_of) for row in rows], pa.string()),
        "start_frame": pa.array([row.start_frame for row in rows], pa.int64()),
        "end_frame": pa.array([row.end_frame for row in rows], pa.int64()),
        "start": pa.array([row.start for row in rows], pa.float64()),
        "seconds": pa.array([row.seconds for row in rows], pa.float64()),
        "fps": pa.array([row.fps for row in rows], pa.float64()),
        "height": pa.array([row.size[0] for row in rows], pa.int32()),
        "width": pa.array([row.size[1] for row in rows], pa.int32()),
        "codec": pa.array([row.codec for row in rows], pa.string()),
        "captions": pa.array([list(row.captions) for row in rows], pa.list_(pa.string())),
        "caption_source": pa.array([row.caption_source for row in rows], pa.string()),
        "note": pa.array([row.note for row in rows], pa.string()),
    }
    for name in names:
        columns[name] = pa.array([row.scores.get(name) for row in rows], pa.float64())
    found = {
        "videos": work.videos,
        "settings": work.settings.to_dict(),
        "versions": versions(),
    }
    table = pa.table(columns).replace_schema_metadata({_ABOUT: json.dumps(found)})
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content, compression="zstd")
    path = out / NAME
    files.replace(path, content.getvalue())
    return path


def about(out: Path) -> dict[str, Any]:
    """What the metadata of a table says (`write`). Raises DataError where it cannot be read."""
    path = out / NAME
    try:
        return json.loads(pyarrow.parquet.read_schema(path).metadata[_ABOUT.encode()])
    except (OSError, pa.ArrowInvalid, KeyError, ValueError, TypeError) as error:
        raise DataError(
            f"{path}: no table of vdm data curate that can be read ({type(error).__name__})"
        ) from error


def versions() -> dict[str, str]:
    """Of what the results depend on."""
    found = {"vdm_jax": importlib.metadata.version("vdm_jax")}
    # OpenCV and PySceneDetect come in packages of several names.
    found |= {module.__name__: module.__version__ for module in (av, cv2, scenedetect)}
    for name, numbers in av.library_versions.items():
        found[name] = ".".join(map(str, numbers))
    return found


def summary(rows: Sequence[ClipRow]) -> dict[str, float]:
    """Numbers of films, clips and hours, all and kept."""
    clips = [row for row in rows if row.name]
    kept = [row for row in clips if row.kept]
    return {
        "films": len({row.film for row in rows}),
        "films without clips": len({row.film for row in rows if not row.name}),
        "clips": len(clips),
        "clips kept": len(kept),
        "hours": sum(row.seconds for row in clips) / 3600,
        "hours kept": sum(row.seconds for row in kept) / 3600,
    }


def reasons(rows: Sequence[ClipRow]) -> dict[str, int]:
    """How many clips each range removes; a clip that several remove counts for each."""
    counts: dict[str, int] = {}
    for row in rows:
        if not row.name or row.kept:
            continue
        for reason in row.reason.split("; "):
            counts[reason.split(" ")[0]] = counts.get(reason.split(" ")[0], 0) + 1
    return dict(sorted(counts.items(), key=lambda one: -one[1]))
