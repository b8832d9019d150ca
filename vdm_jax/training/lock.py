"""A lock on a working directory: two runs in one would destroy each other's checkpoints.

The lock is a file, WORKDIR/run.lock. It names host and process, and its time of change is the
holder's heartbeat. Nothing else is asked of the file system, so it works on a disk that several
machines share and on a bucket that is mounted. A lock is stale, and taken over, if its process is
gone (on the same machine, at once) or if its heart has stopped for some minutes (elsewhere).
"""

import contextlib
import dataclasses
import json
import os
import secrets
import shlex
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vdm_jax.training import processes
from vdm_jax.training.integrity import CheckpointError, plain

FILE = "run.lock"
BEAT = 10.0  # seconds between heartbeats
# Seconds without a heartbeat after which a process of another machine is taken for gone. Mounted
# buckets and NFS show a change of a file up to a minute late.
STALE = 180.0
_SETTLE = 2.0  # seconds, where two machines may both believe that they have made the file
_ATTEMPTS = 5  # when others take over at the same time


@dataclasses.dataclass(frozen=True, kw_only=True)
class Holder:
    """Who holds a lock.

    Attributes:
      host, pid: the process.
      machine: of Linux the boot and the namespace of process numbers, else "". Containers may share
        a host's name, and not its process numbers.
      started: when the process was started, in the machine's ticks, 0 = not known. A later process
        may have its number.
      since: when it took the lock, UTC.
      command: what was started.
      token: distinguishes this lock from every other.
    """

    host: str
    pid: int
    machine: str
    started: int
    since: str
    command: str
    token: str

    def __str__(self) -> str:
        return (
            f"process {self.pid} on {self.host}, which has run there since {self.since} UTC "
            f"({self.command})"
        )


class Lock(contextlib.AbstractContextManager):
    """The lock of a working directory, for one process. A context manager.

    Attributes:
      path: of the file.
    """

    def __init__(
        self,
        workdir: str | Path,
        report: Callable[[str], object] = print,
        *,
        beat: float = BEAT,
        stale: float = STALE,
    ):
        """report: takes a line where a lock is waited for or taken over. beat, stale: seconds."""
        self._workdir = Path(workdir).absolute()
        self.path = self._workdir / FILE
        self._report, self._beat, self._stale = report, beat, stale
        self._own = b""
        self._stop = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> "Lock":
        self.acquire()
        return self

    def __exit__(self, *_) -> None:
        self.release()

    def acquire(self) -> None:
        """Takes the lock, from a holder that is gone too.

        Waits where a process of another machine holds it, until that shows a heartbeat or is taken
        for gone. Raises CheckpointError, saying who holds it, where that one lives, and where the
        file cannot be written.
        """
        self._own = json.dumps(dataclasses.asdict(_this_process()), indent=1).encode()
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            for _ in range(_ATTEMPTS):
                if self._make():
                    break
                if (found := self._read()) is None:
                    continue
                if self._lives(found):
                    raise CheckpointError(self._in_use(found))
                self._report(f"{self._workdir}: the run of {_described(found)} is gone; going on")
                self._take_away(found)
            else:
                raise CheckpointError(self._in_use(self._read() or b""))
        except OSError as error:
            raise CheckpointError(f"{self.path} cannot be made: {plain(error)}") from error
        self._stop.clear()
        self._heart = threading.Thread(target=self._live, name="lock of the workdir", daemon=True)
        self._heart.start()

    def release(self) -> None:
        """Gives the lock up, if it is still this one's."""
        self._stop.set()
        if self._heart is None:
            return
        self._heart.join()
        self._heart = None
        with contextlib.suppress(OSError):
            if self._read() == self._own:
                self.path.unlink()

    def check(self) -> None:
        """Raises CheckpointError where another run has taken over: this one was suspended, or the
        file system did not show its heartbeat, for longer than `stale` seconds."""
        try:
            found = self._read()
            if found is None and self._make():  # someone has deleted the file
                return
            found = self._read() if found is None else found
        except OSError:
            return  # a disk that cannot be read: saving says so
        if found != self._own:
            raise CheckpointError(
                f"{self._workdir} has been taken over by {_described(found or b'')}: this run was "
                "suspended, or could not write its heartbeat, for too long. It stops without "
                "saving; nothing of the other run was touched."
            )

    def _make(self) -> bool:
        """Makes the file, unless it is there."""
        draft = self.path.with_name(f"{FILE}.{secrets.token_hex(4)}")
        try:
            draft.write_bytes(self._own)
            try:
                os.link(draft, self.path)  # whole at once
                return True
            except FileExistsError:
                return False
            except OSError:  # a file system without hard links
                pass
        finally:
            draft.unlink(missing_ok=True)
        try:
            with self.path.open("xb") as file:
                file.write(self._own)
        except FileExistsError:
            return False
        time.sleep(_SETTLE)
        return self._read() == self._own

    def _read(self) -> bytes | None:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return None

    def _lives(self, found: bytes) -> bool:
        """Whether the holder lives; waits to see its heart beat where that cannot be known now."""
        holder = _parsed(found)
        here = _this_process()
        if holder and (holder.host, holder.machine) == (here.host, here.machine):
            return _runs(holder)
        try:
            first = self.path.stat().st_mtime
            # By the clock of the file system, which is that of the heartbeat.
            left = min(self._stale - (self._now() - first), self._stale)
        except FileNotFoundError:
            return False
        if left > 0:
            self._report(
                f"{self._workdir}: is in use by {_described(found)}, or was; waiting up to "
                f"{left:.0f} s for a sign of life"
            )
        until = time.monotonic() + left
        while time.monotonic() < until:
            time.sleep(min(self._beat / 2, max(until - time.monotonic(), 0)))
            try:
                if self.path.stat().st_mtime != first:
                    return True
            except FileNotFoundError:
                return False
        return False

    def _now(self) -> float:
        """The time by the clock of the file system."""
        probe = self.path.with_name(f"{FILE}.{secrets.token_hex(4)}")
        try:
            probe.touch()
            return probe.stat().st_mtime
        finally:
            probe.unlink(missing_ok=True)

    def _take_away(self, found: bytes) -> None:
        """Removes the lock that was judged, and no other that came meanwhile."""
        aside = self.path.with_name(f"{FILE}.{secrets.token_hex(4)}")
        try:
            self.path.rename(aside)
        except FileNotFoundError:
            return
        if aside.read_bytes() != found and not self.path.exists():
            aside.rename(self.path)  # another one was quicker
            return
        aside.unlink()

    def _live(self) -> None:
        """In a thread: the heartbeat."""
        while not self._stop.wait(self._beat):
            with contextlib.suppress(OSError):
                if self._read() == self._own:
                    os.utime(self.path)

    def _in_use(self, found: bytes) -> str:
        return (
            f"{self._workdir} is in use by {_described(found)}. Stop that run first, or give "
            f"another --workdir. (If it is certain that it is gone, delete {self.path}.)"
        )


@contextlib.contextmanager
def held(workdir: str | Path, report: Callable[[str], object] = print) -> Iterator[Lock]:
    """The lock of a working directory for all processes of a run; the first one holds it.

    Every process calls it alike. Raises CheckpointError, in all of them, as `Lock.acquire`.
    """
    lock = Lock(workdir, report)
    processes.first_does(lock.acquire)
    try:
        yield lock
    finally:
        lock.release()


def _this_process() -> Holder:
    return Holder(
        host=socket.gethostname(),
        pid=os.getpid(),
        machine=_machine(),
        started=_started(os.getpid()) or 0,
        since=time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
        command=shlex.join(_command())[:500],
        token=secrets.token_hex(8),
    )


def _command() -> list[str]:
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        return ["python", "-m", program.parent.name, *sys.argv[1:]]
    return [program.name, *sys.argv[1:]]


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _runs(holder: Holder) -> bool:
    """Whether a process of this machine runs, and is not a later one of the same number."""
    if Path("/proc/self/stat").exists():
        started = _started(holder.pid)
        return started is not None and started == holder.started
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _started(pid: int) -> int | None:
    """When a process was started, in ticks since the boot; None if it is not there, or has ended
    and only its parent has not noticed."""
    try:
        # The name, in brackets, may hold spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else int(fields[19])


def _parsed(found: bytes) -> Holder | None:
    """None where the file is not whole, because it is just being written."""
    try:
        return Holder(**json.loads(found))
    except (ValueError, TypeError):
        return None


def _described(found: bytes) -> str:
    return str(_parsed(found) or "another process")
