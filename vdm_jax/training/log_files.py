"""Files that grow while a run goes on, and that others read meanwhile.

A mounted bucket shows what was written only once the file is closed: gcsfuse uploads it then.
So these files are closed now and then, and opened again by the next write.
"""

import os
import socket
import struct
import time
from pathlib import Path

from tensorboardX.proto import event_pb2, summary_pb2
from tensorboardX.record_writer import masked_crc32c

PERIOD = 60.0  # seconds; a bucket takes one change of an object a second, and all of its bytes


class AppendedFile:
    """A file that bytes are appended to. Closed `period` seconds after it was opened, at the next
    write, and by `close`; a write after that opens it again."""

    def __init__(self, path: Path, period: float = PERIOD):
        self.path = path
        self._period = period
        self._file, self._opened = None, 0.0

    def write(self, data: bytes) -> None:
        """Appends `data`, which readers on a local disk see at once. Raises OSError."""
        if self._file is None:
            self._file, self._opened = self.path.open("ab", buffering=0), time.monotonic()
        self._file.write(data)
        if time.monotonic() - self._opened >= self._period:
            self.close()

    def close(self) -> None:
        """Makes everything that was written visible, on a mounted bucket too."""
        if self._file is not None:
            self._file.close()
            self._file = None


class EventFile:
    """A new file of TensorBoard events in `directory`.

    purge_from: steps from this one on, of the files before, are not shown; None: all are.
    """

    def __init__(self, directory: Path, purge_from: int | None = None, period: float = PERIOD):
        directory.mkdir(parents=True, exist_ok=True)
        begun = time.time()
        name = f"events.out.tfevents.{begun:.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = AppendedFile(directory / name, period)
        self._add(event_pb2.Event(file_version="brain.Event:2"))
        if purge_from is not None:
            log = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
            self._add(event_pb2.Event(step=purge_from, session_log=log))

    def add(self, step: int, *values: summary_pb2.Summary.Value) -> None:
        """Adds values, all at `step`."""
        self._add(event_pb2.Event(step=step, summary=summary_pb2.Summary(value=values)))

    def close(self) -> None:
        """Makes all events visible; more may follow."""
        self._file.close()

    def _add(self, event: event_pb2.Event) -> None:
        event.wall_time = time.time()
        data = event.SerializeToString()
        length = struct.pack("<Q", len(data))
        checks = (struct.pack("<I", masked_crc32c(part)) for part in (length, data))
        self._file.write(length + next(checks) + data + next(checks))
