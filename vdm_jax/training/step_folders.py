"""The directories of saved steps, `checkpoints/STEP`, and when one is complete.

The directory of a step holds an empty file UNFINISHED from before its first array until everything
is on the disk, and an empty file DELETED while it is being deleted. Without either the step is
complete. No directory is renamed: a mounted bucket refuses that, or copies the files one by one, so
that a process which is killed meanwhile leaves half a step under its final name.
"""

import contextlib
import shutil
import time
from pathlib import Path

from vdm_jax.training import array_store, integrity
from vdm_jax.training.integrity import CheckpointError

UNFINISHED = "UNFINISHED"
DELETED = "DELETED"


def complete_steps(directory: Path) -> list[int]:
    """The complete steps of a directory of checkpoints, in order."""
    return [int(path.name) for path in _folders(directory) if is_complete(path)]


def is_complete(step: Path) -> bool:
    """Whether a step is there, and neither being saved nor being deleted."""
    try:
        names = {path.name for path in step.iterdir()}
    except FileNotFoundError:
        return False
    # An empty directory is just being made, or just being removed.
    return bool(names) and not names & {UNFINISHED, DELETED}


def clear(directory: Path) -> list[tuple[Path, bool]]:
    """Removes the steps that are not complete.

    Returns each, and whether it was being saved; otherwise it was being deleted.
    """
    removed = [
        (path, not (path / DELETED).exists())
        for path in _folders(directory)
        if not is_complete(path)
    ]
    for path, _ in removed:
        remove(path)
    return removed


def make(step: Path) -> None:
    """Makes an empty directory, marked as unfinished, for the files of a step. Raises OSError."""
    remove(step)
    step.mkdir(parents=True)
    _mark(step, UNFINISHED)
    array_store.make(step)


def complete(step: Path) -> None:
    """Makes a step complete, whose files are on the disk. Raises OSError."""
    (step / UNFINISHED).unlink()
    integrity.sync(step)


def remove(step: Path) -> None:
    """Deletes a step as far as possible, also from under writers that are about to stop.

    Its marks go last: what is left by a process that is killed meanwhile is no complete step.
    """
    marks = {step / UNFINISHED, step / DELETED}
    for _ in range(50):
        if not step.exists():
            return
        with contextlib.suppress(OSError):
            for path in {*step.iterdir()} - marks:
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink()
            if {*step.iterdir()} <= marks:
                shutil.rmtree(step)
                return
        time.sleep(0.1)


def delete(step: Path) -> str:
    """Deletes a complete step; "" or why it could not be."""
    try:
        _mark(step, DELETED)
    except OSError as error:
        return integrity.plain(error)
    remove(step)
    return ""


def put_aside(step: Path) -> str:
    """Moves a damaged step to `damaged_STEP`, or `damaged_STEP_2` and so on; the new name.

    Raises CheckpointError.
    """
    names = (f"damaged_{step.name}{suffix}" for suffix in ("", *(f"_{n}" for n in range(2, 1000))))
    name = next(name for name in names if not step.with_name(name).exists())
    try:
        for path in sorted(step.rglob("*")):  # directories before what they hold
            moved = step.with_name(name) / path.relative_to(step)
            if path.is_dir():
                moved.mkdir(parents=True, exist_ok=True)
            else:
                moved.parent.mkdir(parents=True, exist_ok=True)
                path.rename(moved)
        shutil.rmtree(step)
    except OSError as error:
        raise CheckpointError(
            f"{step} is damaged and cannot be moved to {name}: {integrity.plain(error)}"
        ) from error
    return name


def _folders(directory: Path) -> list[Path]:
    """The directories of all steps, complete or not, in their order."""
    if not directory.is_dir():
        return []
    found = (path for path in directory.iterdir() if path.name.isdigit())
    return sorted(found, key=lambda path: int(path.name))


def _mark(step: Path, name: str) -> None:
    """Puts the empty file `name`, which needs no space on a full disk, into a step."""
    (step / name).touch()
    integrity.sync(step)
