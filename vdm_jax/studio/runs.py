"""What the files of a training run say while it goes on: curves, samples, checkpoints, figures.

Only files that training writes anyway are read, and each may be missing, half written or damaged:
whatever can be read is shown, and a note says what cannot.
"""

import dataclasses
import datetime
import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vdm_jax.evaluation import protocol
from vdm_jax.pipelines import cascade_file
from vdm_jax.training import lock, metrics, step_folders

POINTS = 600  # of a curve; more are thinned out evenly
SAMPLES = 6  # that are shown, the latest
# Seconds after its last heartbeat that a run is taken to go on. A bucket shows a change late.
_ALIVE = 90.0
_MOST_FIGURES = 40
CURVES = ("loss", "clips_per_second")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A run as its files show it now.

    Attributes:
      name: of the working directory, as short as it is distinct.
      folder: the working directory.
      state: a sentence: whether it goes on, and how far it is.
      step, steps: updates done and to do, 0 = not known.
      curves: by a metric's name, (step, value) of finite values.
      samples: (step, picture), in order of steps.
      checkpoints: (step, when it was completed), in order of steps.
      figures: (file, metric, value with its interval) of evaluations.
      notes: what could not be read.
    """

    name: str
    folder: Path
    state: str
    step: int = 0
    steps: int = 0
    curves: Mapping[str, Sequence[tuple[int, float]]] = dataclasses.field(default_factory=dict)
    samples: Sequence[tuple[int, Path]] = ()
    checkpoints: Sequence[tuple[int, str]] = ()
    figures: Sequence[tuple[str, str, str]] = ()
    notes: Sequence[str] = ()


def find(folders: Sequence[str | Path]) -> list[Path]:
    """The working directories that are meant: each folder itself, the stages of a cascade's, and
    those in a folder that holds several. One that is not there yet is kept: it may come."""
    found: list[Path] = []
    for folder in map(Path, folders):
        inside = [] if _is_run(folder) or not folder.is_dir() else _runs_in(folder)
        found += [path for path in (inside or [folder]) if path not in found]
    return found


def read(folder: Path, name: str | None = None) -> Run:
    """A run as its files show it now. It raises nothing: what cannot be read becomes a note."""
    name = name or folder.name or str(folder)
    if not folder.is_dir():
        return Run(name=name, folder=folder, state="There is no such folder yet: waiting for it.")
    notes: list[str] = []
    rows = _log(folder / metrics.LOG_NAME, notes)
    steps = _steps(folder / "config.json", notes)
    step = int(rows[-1]["step"]) if rows else 0
    curves = {key: _thinned(_curve(rows, key)) for key in CURVES}
    return Run(
        name=name,
        folder=folder,
        state=_state(folder, rows, step, steps),
        step=step,
        steps=steps,
        curves={key: points for key, points in curves.items() if points},
        samples=_samples(folder)[-SAMPLES:],
        checkpoints=_checkpoints(folder),
        figures=_figures(folder, notes),
        notes=notes,
    )


def names(folders: Sequence[Path]) -> list[str]:
    """The folders' names, each with as many parents as distinguish it."""
    for parts in range(1, max((len(path.parts) for path in folders), default=1) + 1):
        short = ["/".join(path.parts[-parts:]) for path in folders]
        if len(set(short)) == len(short):
            return short
    return [str(path) for path in folders]


def signature(folder: Path) -> tuple:
    """What changes when `read` would return something else."""
    names = (metrics.LOG_NAME, "config.json", "samples", "checkpoints", "evaluation", lock.FILE)
    files = [folder, *(folder / name for name in names)]
    files += [*folder.glob("samples/*.gif"), *folder.glob("evaluation/*.json")]
    now = []
    for file in files:
        try:
            stat = file.stat()
        except OSError:
            now.append(None)
        else:
            now.append((stat.st_mtime_ns, stat.st_size))
    return (*now, int(time.time() / _ALIVE))


def _is_run(folder: Path) -> bool:
    return any((folder / name).exists() for name in (metrics.LOG_NAME, "config.json"))


def _runs_in(folder: Path) -> list[Path]:
    """The working directories below a folder: a cascade's in the order of its stages."""
    if (folder / cascade_file.NAME).is_file():
        try:
            return [folder / stage for stage in cascade_file.read(folder).stages]
        except (ValueError, OSError):
            pass  # half written: by name
    return sorted(path for path in folder.iterdir() if path.is_dir() and _is_run(path))


def _log(path: Path, notes: list[str]) -> list[dict[str, Any]]:
    """The lines of the log in order of steps. The last one may be half written: it is left out."""
    try:
        text = path.read_bytes().decode("utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        notes.append(f"{path.name} cannot be read: {error.strerror or error}")
        return []
    whole, bad, rows = text.split("\n")[:-1], 0, []
    for line in filter(str.strip, whole):
        row = _object(line)
        if row is not None and isinstance(row.get("step"), int):
            rows.append(row)
        else:
            bad += 1
    if bad:
        notes.append(f"{path.name}: {bad} of {len(whole)} lines are damaged and left out")
    return rows


def _object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _steps(path: Path, notes: list[str]) -> int:
    """The updates that a run's configuration asks for, 0 = not known."""
    try:
        config = _object(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return 0
    except (OSError, ValueError):
        config = None
    if config is None:
        notes.append(f"{path.name} cannot be read")
        return 0
    steps = (config.get("train") or {}).get("steps", 0)
    return steps if isinstance(steps, int) else 0


def _state(folder: Path, rows: Sequence[Mapping[str, Any]], step: int, steps: int) -> str:
    far = f"step {step:,}" + (f" of {steps:,}" if steps else "")
    age = _age(folder / lock.FILE)
    if age is not None and age < _ALIVE:
        if not rows:
            return "Running: nothing is logged yet."
        left = _left(rows[-1], steps - step)
        return f"Running: {far}{f', {left} left' if left else ''}."
    if not rows:
        return "Nothing is logged yet: it has not started, or stopped before its first line."
    if steps and step >= steps:
        return f"Finished: {far}."
    return f"Stopped at {far}, {_ago(_age(folder / metrics.LOG_NAME) or 0.0)}."


def _left(row: Mapping[str, Any], updates: int) -> str:
    each = row.get("step_seconds")
    if updates <= 0 or not isinstance(each, int | float) or not math.isfinite(each):
        return ""
    minutes = each * updates / 60
    return f"{minutes:.0f} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    values = ((row["step"], row.get(key)) for row in rows)
    return [
        (step, float(value))
        for step, value in values
        if isinstance(value, int | float) and math.isfinite(value)
    ]


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """At most POINTS of them, the first and the last among them."""
    if len(points) <= POINTS:
        return points
    places = (round(i * (len(points) - 1) / (POINTS - 1)) for i in range(POINTS))
    return [points[at] for at in places]


def _samples(folder: Path) -> list[tuple[int, Path]]:
    found = []
    for path in folder.glob("samples/step_*.gif"):
        number = path.stem.removeprefix("step_")
        if number.isdigit():
            found.append((int(number), path))
    return sorted(found)


def _checkpoints(folder: Path) -> list[tuple[int, str]]:
    directory = folder / "checkpoints"
    try:
        steps = step_folders.complete_steps(directory)
        times = [(directory / str(step)).stat().st_mtime for step in steps]
    except OSError:
        return []
    shown = [datetime.datetime.fromtimestamp(when).strftime("%Y-%m-%d %H:%M") for when in times]
    return sorted(zip(steps, shown, strict=True))


def _figures(folder: Path, notes: list[str]) -> list[tuple[str, str, str]]:
    """The figures of `vdm evaluate --out=WORKDIR/evaluation/NAME.json`."""
    found: list[tuple[str, str, str]] = []
    for path in sorted(folder.glob("evaluation/*.json")):
        try:
            results = protocol.load(path)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            notes.append(f"evaluation/{path.name} is no file of vdm evaluate, or half written")
            continue
        for result in results:
            value = f"{result.value:.4g}"
            if result.low is not None:
                value += f" ({result.low:.4g} to {result.high:.4g})"
            found.append((path.stem, result.protocol.metric, value))
    return found[:_MOST_FIGURES]


def _age(path: Path) -> float | None:
    """Seconds since a file was changed, None = it is not there."""
    try:
        return max(0.0, time.time() - path.stat().st_mtime)
    except OSError:
        return None


def _ago(seconds: float) -> str:
    for size, unit in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= size:
            count = int(seconds // size)
            return f"{count} {unit}{'s' * (count > 1)} ago"
    return "less than a minute ago"
