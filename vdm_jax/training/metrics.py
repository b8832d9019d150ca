"""What a run tells: a JSONL log, TensorBoard, a progress bar or plain lines."""

import contextlib
import json
import math
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TextIO

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from tensorboardX.proto.summary_pb2 import Summary

from vdm_jax.data import video_io
from vdm_jax.training.log_files import AppendedFile, EventFile

LOG_NAME = "metrics.jsonl"

# Metrics of the moment; of all others a log line holds the mean since the line before.
_INSTANTANEOUS = frozenset({"learning_rate", "ema_decay", "skipped"})


class Averager:
    """Means of the metrics of several steps, on the host."""

    def __init__(self):
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            if name in _INSTANTANEOUS:
                self._sums[name] = value
            else:
                self._sums[name] = self._sums.get(name, 0.0) + value
        self._count += 1

    def take(self) -> dict[str, float]:
        """The means since the last call, which starts anew."""
        means = {
            name: total if name in _INSTANTANEOUS else total / self._count
            for name, total in self._sums.items()
        }
        self._sums, self._count = {}, 0
        return means


class Clock:
    """Where the wall time of training goes.

    ideal_seconds: what an update would take at the devices' peak, 0 = not known.
    """

    def __init__(self, ideal_seconds: float = 0.0):
        self._ideal = ideal_seconds
        self._spent: dict[str, float] = {}
        self._since: tuple[int, float] | None = None

    @contextlib.contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Time spent within is `name`'s."""
        begun = time.monotonic()
        yield
        self._spent[name] = self._spent.get(name, 0.0) + time.monotonic() - begun

    def take(self, update: int) -> dict[str, float]:
        """Since the last call: `step_seconds` an update, the shares `data_wait` and
        `checkpoint_wait` of the wall time, and `mfu`, the share of the devices' peak that was
        used, where it is known. Empty at the first call, whose time held the compilation."""
        now, spent = time.monotonic(), self._spent
        since, self._since, self._spent = self._since, (update, now), {}
        if since is None or update == since[0]:
            return {}
        wall, updates = now - since[1], update - since[0]
        values = {"step_seconds": wall / updates}
        for name in ("data_wait", "checkpoint_wait"):
            values[name] = spent.get(name, 0.0) / wall
        if self._ideal:
            values["mfu"] = self._ideal * updates / wall
        return values


class MetricWriter:
    """Writes `workdir/metrics.jsonl` and TensorBoard events in `workdir/tensorboard`.

    A run that resumes at `first_step` drops what an interrupted run logged after it, so that each
    step stands in the log once. A `quiet` writer writes nothing: that of all processes of a run but
    the first.
    """

    def __init__(self, workdir: str | Path, first_step: int = 0, quiet: bool = False):
        self.path = Path(workdir) / LOG_NAME
        self._quiet = quiet
        if quiet:
            return
        kept = [line for line in _lines(self.path) if _step_of(line) <= first_step]
        self.path.write_text("".join(line + "\n" for line in kept))
        self._file = AppendedFile(self.path)
        purge_from = first_step + 1 if first_step else None
        self._tensorboard = EventFile(Path(workdir) / "tensorboard", purge_from)

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """One line of the log and one point of every curve."""
        if self._quiet:
            return
        values = {"step": step, **{name: _jsonable(value) for name, value in values.items()}}
        self._file.write((json.dumps(values) + "\n").encode())
        points = [
            Summary.Value(tag=f"train/{name}", simple_value=value)
            for name, value in values.items()
            if isinstance(value, int | float) and name != "step"
        ]
        self._tensorboard.add(step, *points)

    def video(self, step: int, tag: str, video: np.ndarray, fps: float) -> None:
        """An animated image in TensorBoard. video: uint8 `f h w c`."""
        image = Summary.Image(
            height=video.shape[1],
            width=video.shape[2],
            colorspace=3,
            encoded_image_string=video_io.encode_gif(video, fps),
        )
        self._tensorboard.add(step, Summary.Value(tag=tag, image=image))

    def close(self) -> None:
        """Makes everything visible, on a mounted bucket too; more may follow."""
        if self._quiet:
            return
        self._file.close()
        self._tensorboard.close()


class ProgressReport:
    """A bar on a terminal, a line a log point elsewhere. Use as a context manager.

    A run ends at `steps` or after `seconds` of wall time (0 = no limit), whichever is first; both
    the bar and the ETA follow the nearer end. A `quiet` one shows nothing.
    """

    def __init__(
        self,
        first_step: int,
        steps: int,
        seconds: float = 0,
        out: TextIO | None = None,
        quiet: bool = False,
    ):
        self._out = out or sys.stdout
        self._first, self._steps, self._seconds = first_step, steps, seconds
        self._console = Console(file=self._out, highlight=False, quiet=quiet)
        self._bar = None
        if self._console.is_terminal and not quiet:
            self._bar = Progress(
                TextColumn("step {task.fields[step]}/{task.fields[steps]}"),
                BarColumn(bar_width=16),
                TextColumn("{task.fields[text]}"),
                console=self._console,
            )
            self._task = self._bar.add_task(
                "", total=1.0, step=first_step, steps=steps, text="compiling the first step"
            )

    def __enter__(self) -> "ProgressReport":
        self._start = time.monotonic()
        self._compiled = None
        self._text = "compiling the first step"
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, step: int) -> None:
        """Step `step` is done."""
        if self._compiled is None:
            self._compiled = (step, time.monotonic())
        if self._bar:
            self._bar.update(self._task, completed=self._share(step)[0], step=step, text=self._text)

    def log(self, step: int, loss: float, clips_per_second: float) -> None:
        """New figures at `step`: mean loss since the last ones, speed."""
        eta = self._share(step)[1]
        self._text = f"loss {loss:.4f}  {clips_per_second:.1f} clips/s  ETA {_clock(eta)}"
        if self._bar:
            self.step(step)
        else:
            self.message(f"step {step}/{self._steps}  {self._text}")

    def message(self, text: str) -> None:
        """A line of its own, above the bar."""
        self._console.print(text, markup=False, soft_wrap=True)

    def _share(self, step: int) -> tuple[float, float]:
        """(share done, seconds left) by whichever end is nearer."""
        now = time.monotonic()
        done = (step - self._first) / max(self._steps - self._first, 1)
        # The rate is that after the first step, which held the compilation.
        since, at = self._compiled or (step, now)
        left = (now - at) / (step - since) * (self._steps - step) if step > since else math.inf
        elapsed = now - self._start
        if self._seconds and self._seconds - elapsed < left:
            return min(elapsed / self._seconds, 1.0), max(self._seconds - elapsed, 0.0)
        return done, left


def _clock(seconds: float) -> str:
    if not math.isfinite(seconds):
        return "-:--:--"
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _jsonable(value) -> float | str:
    # JSON has no NaN: a reader other than Python's would refuse the line.
    value = float(value)
    return value if math.isfinite(value) else str(value)


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError, TypeError):
        return math.inf  # half a line, of a run that was killed while writing it
