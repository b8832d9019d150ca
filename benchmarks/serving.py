"""Both sides of a benchmark as processes that are asked over pipes, JSON lines each way.

A process of its own for each side separates memory, threads, and what a crash takes with it. The
workers run under different Pythons: this file needs neither JAX nor PyTorch.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


class WorkerError(RuntimeError):
    """What a worker could not do; the message is its error, in a line."""


class Worker:
    """A process that answers requests.

    name: for messages. command: with the Python that runs it. variables: added to the environment.
    `started` is the time.perf_counter() just before the process was made.
    """

    def __init__(self, name: str, command: list[str], variables: Mapping[str, str] | None = None):
        self.name = name
        self.started = time.perf_counter()
        self._process = subprocess.Popen(
            command,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # so that what it starts, PyTorch's compilers, ends with it
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(variables or {})},
        )
        self._closed = False
        self._answers: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def ask(self, operation: str, *, limit: float, **values: Any) -> Any:
        """The answer to a request. Raises WorkerError where the worker fails or takes more than
        `limit` seconds; after the latter it is ended."""
        if self._process.poll() is not None:
            raise WorkerError(f"the process has ended (status {self._process.returncode})")
        try:
            self._process.stdin.write(json.dumps({"op": operation, **values}) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=limit)
        except queue.Empty:
            self.close(kill=True)
            raise WorkerError(f"{operation} took more than {limit:g} s") from None
        except BrokenPipeError:
            line = ""
        if not line:
            raise WorkerError(f"the process ended (status {self._process.wait()})")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer["value"]

    def close(self, kill: bool = False) -> None:
        """Ends the process, with `kill` at once, and what it has started."""
        if self._closed:  # its number may be another's by now
            return
        self._closed = True
        if not kill and self._process.poll() is None:
            self._process.stdin.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=30)
        with contextlib.suppress(ProcessLookupError):  # nothing of it is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")  # the end


def serve(make: Callable[[], Mapping[str, Callable[..., Any]]]) -> None:
    """Answers requests from standard input until it ends: what a worker's main function calls.

    make: builds what is served, {operation: function of the request's values}.
    """
    # Answers only on the real standard output: libraries that print must not disturb them.
    answers, sys.stdout = sys.stdout, sys.stderr
    operations: Mapping[str, Callable[..., Any]] | None = None
    for line in sys.stdin:
        request = json.loads(line)
        try:
            operations = make() if operations is None else operations
            answer = {"value": operations[request.pop("op")](**request)}
        except Exception as error:
            answer = {"error": reason(error)}
        print(json.dumps(answer), file=answers, flush=True)


def reason(error: Exception) -> str:
    """An exception in a line short enough for a table."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:160]


def timed(function: Callable[[], Any], steps: int) -> list[float]:
    """Seconds of each of `steps` calls; `function` waits until the device is done."""
    seconds = []
    for _ in range(steps):
        started = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - started)
    return seconds


def resident() -> int:
    """Bytes of memory that this process holds now (Linux)."""
    return _status("VmRSS")


def reset_peak() -> None:
    """Lets `peak_resident` start from what is held now (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_resident() -> int:
    """Bytes of memory that this process has held at most since `reset_peak` (Linux)."""
    return _status("VmHWM")


def _status(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")
