"""Whether a directory is the same for all processes of a run, and fresh for all of them.

On TPU machines gcsfuse keeps metadata for ever, unless it is mounted otherwise. A process then sees
new files, and never that one has changed. So the heartbeat of a lock stands still for it.
"""

import contextlib
import functools
import time
from pathlib import Path

from vdm_jax.training import processes
from vdm_jax.training.integrity import CheckpointError

LAG = 10.0  # seconds until what one process writes is seen by another, over a network
LAG_OF_CHANGES = 90.0  # likewise, what it changes; gcsfuse keeps metadata for 60 by default


def check(directory: Path) -> None:
    """Raises CheckpointError where a process does not see what the first one writes or changes."""
    if processes.count() == 1:
        return
    token = directory / f".processes_{processes.first_does(time.time_ns)}"
    unshared = (
        f"process {processes.index()} does not see what process 0 writes in {directory}: several "
        "processes need a --workdir on a disk that they share"
    )
    stale = (
        f"process {processes.index()} does not see that process 0 has changed a file in "
        f"{directory}: its mount keeps what it knows of files for ever, so that a run on another "
        "machine would not see this one's lock; gcsfuse needs --metadata-cache-ttl-secs=0"
    )
    try:
        for text, patience, problem in (("1", LAG, unshared), ("2", LAG_OF_CHANGES, stale)):
            if not processes.first_does(functools.partial(_write, token, text)):
                return  # a full disk, say, which is no reason not to read
            processes.all_do(functools.partial(_wait_for, token, text, patience, problem))
    finally:
        processes.first_does(lambda: token.unlink(missing_ok=True))


def _write(token: Path, text: str) -> bool:
    try:
        token.write_text(text)
    except OSError:
        return False
    return True


def _wait_for(token: Path, text: str, patience: float, problem: str) -> None:
    """Returns when `token` holds `text`. Raises CheckpointError(problem) after so many seconds."""
    deadline = time.monotonic() + patience
    while True:
        with contextlib.suppress(OSError):
            if token.read_text() == text:
                return
        if time.monotonic() > deadline:
            raise CheckpointError(problem)
        time.sleep(0.1)
