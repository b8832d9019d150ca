"""Jobs one after the other: each a request, its progress while it is made, and its files.

JAX computes one job at a time. Jobs of several visitors wait in a queue, which shows how many are
before them. A job that is cancelled ends within one denoising step.
"""

import contextlib
import dataclasses
import logging
import queue
import shutil
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from vdm_jax.cli import common, kept_models, parsing, progress
from vdm_jax.stage import watching
from vdm_jax.studio import requests
from vdm_jax.studio.requests import Request

WAITING, PREPARING, SAMPLING, DONE, CANCELLED, FAILED = (
    "waiting",
    "preparing",
    "sampling",
    "done",
    "cancelled",
    "failed",
)
ENDS = (DONE, CANCELLED, FAILED)
MOST_WAITING = 16
_TICK = 0.5  # seconds between two updates while nothing happens
_LEAST = 0.2  # seconds between two updates: sending them takes time from the job


class _Cancelled(Exception):
    """Ends the sampling of a job that was cancelled."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Update:
    """How far a job is.

    Attributes:
      state: of the constants above.
      text: a sentence for the visitor.
      share: of the work that is done, 0 to 1; None = not known.
      preview: the current estimates of the clips, uint8 `n f h w c`; None = none yet.
      files: of a job that is done: its videos, or pictures.
    """

    state: str
    text: str
    share: float | None = None
    preview: np.ndarray | None = None
    files: tuple[Path, ...] = ()


class Job:
    """One request on its way. `updates` yields how far it is; `cancel` ends it."""

    def __init__(self, request: Request, out: Path, before: "_Before"):
        self.request, self.out = request, out
        self._before = before
        self._cancel = threading.Event()
        self._changed = threading.Event()
        self._lock = threading.Lock()
        self._end: Update | None = None
        self._started: float | None = None
        self._first_step: tuple[float, float] | None = None  # time, share
        self._step, self._steps, self._parts = 0, 0, (0, 1)
        self._preview: np.ndarray | None = None

    @property
    def cancelled(self) -> bool:
        return self._cancel.is_set()

    def cancel(self) -> None:
        """Ends the job: at once where it waits, else with the denoising step that is computed."""
        self._cancel.set()
        self._changed.set()

    def updates(self) -> Iterator[Update]:
        """Yields updates until the job ends; the last one says how. A visitor who goes away in
        between (the iterator is closed) cancels the job."""
        try:
            while True:
                self._changed.wait(_TICK)
                self._changed.clear()
                update = self.now()
                yield update
                if update.state in ENDS:
                    return
                time.sleep(_LEAST)
        finally:
            self.cancel()

    def now(self) -> Update:
        """How far the job is now."""
        with self._lock:
            if self._end is not None:
                return self._end
            if self._started is None:
                count = self._before.count(self)
                text = "Waiting: " + ("1 job is" if count == 1 else f"{count} jobs are")
                return Update(state=WAITING, text=f"{text} before yours.")
            if self.cancelled:
                text = "Cancelling: it ends with the next step."
                return Update(state=SAMPLING, text=text, preview=self._preview)
            seconds = time.monotonic() - self._started
            if not self._steps:
                text = (
                    f"Preparing, {seconds:.0f} s: reads the model and compiles it for these "
                    "settings. The next video with the same settings starts at once."
                )
                return Update(state=PREPARING, text=text)
            return self._sampling()

    def _sampling(self) -> Update:
        done, total = self._parts
        share = self._share()
        text = f"Step {self._step} of {self._steps}"
        if total > 1:
            text = f"Part {min(done + 1, total)} of {total}, " + text[0].lower() + text[1:]
        began, share_then = self._first_step or (0.0, 0.0)
        if share > share_then:
            each = (time.monotonic() - began) / (share - share_then)
            text += f", {_duration(each * (1 - share))} left"
        return Update(state=SAMPLING, text=f"{text}.", share=share, preview=self._preview)

    def _share(self) -> float:
        done, total = self._parts
        return min(1.0, (done + self._step / max(1, self._steps)) / total) if done < total else 1.0

    # What the command's thread and the device's threads call.

    def started(self) -> None:
        self._started = time.monotonic()
        self._changed.set()

    def ended(self, update: Update) -> None:
        with self._lock:
            self._end = update
        self._changed.set()

    def stepped(self, step: int, steps: int) -> None:
        if self.cancelled:
            raise _Cancelled("the job was cancelled")
        with self._lock:
            self._step, self._steps = step, steps
            if self._first_step is None:
                self._first_step = (time.monotonic(), self._share())
        self._changed.set()

    def estimated(self, videos: np.ndarray) -> None:
        with self._lock:
            self._preview = videos
        self._changed.set()

    def advanced(self, done: int, total: int) -> None:
        if self.cancelled:
            raise _Cancelled("the job was cancelled")
        with self._lock:
            self._parts, self._step = (done, max(1, total)), 0


class _Before:
    """The jobs that wait or run, in order."""

    def __init__(self) -> None:
        self._jobs: list[Job] = []
        self._lock = threading.Lock()

    def add(self, job: Job) -> None:
        with self._lock:
            if len(self._jobs) > MOST_WAITING:
                raise requests.RequestError(
                    f"{len(self._jobs)} jobs are waiting already: try again in a while"
                )
            self._jobs.append(job)

    def remove(self, job: Job) -> None:
        with self._lock:
            self._jobs.remove(job)

    def count(self, job: Job) -> int:
        with self._lock:
            return self._jobs.index(job) if job in self._jobs else 0


class Runner:
    """Runs jobs one after the other in a thread of its own. Models and programs are kept between
    jobs, so that only the first job with some settings waits for the compiler.

    Attributes:
      out: the folder that receives a folder for each job.
    """

    def __init__(self, out: str | Path):
        self.out = Path(out)
        self._before = _Before()
        self._queue: queue.Queue[Job] = queue.Queue()
        self._models = kept_models.KeptModels()
        self._job: Job | None = None
        # The same watcher for every job: samplers keep the program that calls it.
        self._watcher = watching.Watcher(callback=self._stepped, preview=self._estimated)
        self._folder_lock = threading.Lock()
        logging.getLogger("jax._src.debugging").addFilter(_is_no_cancellation)
        threading.Thread(target=self._work, name="studio's jobs", daemon=True).start()

    def folder(self) -> Path:
        """A new folder of the next job: OUT/0001 and so on."""
        with self._folder_lock:
            self.out.mkdir(parents=True, exist_ok=True)
            taken = [int(path.name) for path in self.out.iterdir() if path.name.isdigit()]
            folder = self.out / f"{max(taken, default=0) + 1:04d}"
            folder.mkdir()
            return folder

    def submit(self, request: Request, out: Path) -> Job:
        """The job of a request, with its files in `out`. Raises RequestError where too many
        wait."""
        job = Job(request, out, self._before)
        self._before.add(job)
        self._queue.put(job)
        return job

    def _work(self) -> None:
        while True:
            job = self._queue.get()
            try:
                job.ended(self._run(job))
            finally:
                self._before.remove(job)

    def _run(self, job: Job) -> Update:
        """The last update of a job, after it was done or has failed."""
        if job.cancelled:
            return _cancelled(job)
        job.started()
        self._job = job
        arguments = job.request.arguments(job.out)
        try:
            with (
                kept_models.keeping(self._models),
                watching.watched(self._watcher),
                progress.heard(lambda _, done, total: job.advanced(done, total)),
            ):
                requests.run(arguments)
        except parsing.UsageError as error:
            return _failed(job, error.text)
        except common.expected_errors() as error:
            return _cancelled(job) if job.cancelled else _failed(job, str(error))
        except BaseException as error:  # the server goes on whatever a job raises
            if job.cancelled:
                return _cancelled(job)
            traceback.print_exc()
            text = f"This failed unexpectedly: {type(error).__name__}: {_first_line(error)}"
            return _failed(job, f"{text}. The terminal of vdm studio has the details.")
        finally:
            self._job = None
        seconds = time.monotonic() - (job._started or 0.0)
        return Update(
            state=DONE, text=f"Done in {_duration(seconds)}.", share=1.0, files=results(job.out)
        )

    def _stepped(self, step: int, steps: int) -> None:
        if (job := self._job) is not None:
            job.stepped(step, steps)

    def _estimated(self, step: int, steps: int, videos: np.ndarray) -> None:
        del step, steps
        if (job := self._job) is not None:
            job.estimated(videos)


def results(out: Path) -> tuple[Path, ...]:
    """The videos that a command has written into a folder, or the pictures of single frames."""
    return tuple(sorted(out.glob("[0-9]*.mp4")) or sorted(out.glob("[0-9]*.png")))


def _cancelled(job: Job) -> Update:
    with contextlib.suppress(OSError):
        shutil.rmtree(job.out)
    return Update(state=CANCELLED, text="Cancelled.")


def _failed(job: Job, text: str) -> Update:
    with contextlib.suppress(OSError):
        if not any(job.out.rglob("*.npy")):  # the same command goes on behind these
            shutil.rmtree(job.out)
    return Update(state=FAILED, text=text)


def _is_no_cancellation(record: logging.LogRecord) -> bool:
    """A filter of logs: JAX logs what a callback raises."""
    return not (record.exc_info and isinstance(record.exc_info[1], _Cancelled))


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0]


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds // 60:.0f} min {seconds % 60:.0f} s"
