"""The training loop.

The order of one turn, which resuming depends on: (1) batch k is read, (2) update k is sent to the
device, (3) the metrics of update k-1 arrive, so the device never waits for the host, and a value
that is not finite stops the run, (4) at a checkpoint, and only there, the host waits for update k
too; then the state after update k is saved with the iterator, which stands after batch k.
"""

import contextlib
import dataclasses
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import PyTree

from vdm_jax import config as config_lib
from vdm_jax.data import video_io
from vdm_jax.parallel import chips, heap, sharding
from vdm_jax.training import (
    checkpoints,
    lock,
    metrics,
    optimizer,
    previews,
    processes,
    state,
    step,
)

_NOTHING: dict[str, Any] = {}


class NonFiniteError(FloatingPointError):
    """The loss or a gradient was not finite; the message names the step and the last checkpoint."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Result:
    """How a run ended. reason: "steps", "minutes", "SIGINT" or "SIGTERM"; seconds of wall time."""

    state: state.TrainState
    step: int
    reason: str
    seconds: float


def train(
    stage,
    config,
    workdir: str | Path,
    dataset,
    *,
    plan: sharding.Plan | None = None,
    fps: float = 8.0,
    initial: Callable[[], PyTree] | None = None,
    flops: float = 0.0,
    profile: tuple[int, int] | None = None,
    frozen: Mapping[str, sharding.Frozen] | None = None,
    train_step: step.TrainStep | None = None,
) -> Result:
    """Trains `stage` in `workdir` until train.steps, train.minutes, Ctrl-C or SIGTERM, and saves.

    Every process of a run calls it alike; the first one writes what people read. A checkpoint in
    `workdir` is resumed, on the same devices bit for bit as if the run had never stopped.

    Args:
      dataset: endless batches, each this process's `plan.rows(train.batch_size)`; its iterator has
        get_state and set_state (grain).
      plan: how the stage lies on a mesh; by default on that of `config.mesh`.
      fps: of the sample GIFs.
      initial: makes the parameters that a new run starts from, where the plan stores them.
      flops: operations of one update, for the utilisation of the devices; 0 = not known.
      profile: first and last update, counted from this call, of which a trace is written.
      frozen: parameters that the stage uses and does not train, by name.
      train_step: one compiled already for the same stage, config and plan.

    Writes checkpoints/, config.json, metrics.jsonl, tensorboard/, samples/step_N.gif, profile/.
    Raises NonFiniteError, CheckpointError (also where another run is in `workdir`), MeshError.
    """
    train, workdir = config.train, Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    plan = plan or sharding.make_plan(stage, config.mesh)
    preview = previews.make_preview(stage, config, plan, frozen or {})
    tx = optimizer.make_optimizer(train, stage.abstract_params())
    train_step = train_step or step.make_train_step(stage, tx, config, plan, frozen)
    quiet, started = jax.process_index() != 0, time.monotonic()
    with contextlib.ExitStack() as stack:
        report = _say_nothing if quiet else print
        own = stack.enter_context(lock.held(workdir, report))
        saves = checkpoints.Checkpoints(workdir, keep=config.checkpoint.keep, report=report)
        stack.callback(saves.close)
        iterator = iter(dataset)
        if hasattr(iterator, "close"):
            stack.callback(iterator.close)
        current = _first_state(stage, config, plan, tx, saves, iterator, initial)
        first = int(current.step)
        batch = _first_batch(iterator, train, plan) if first < train.steps else None
        if not quiet:
            (workdir / "config.json").write_text(config_lib.to_json(config))

        writer = metrics.MetricWriter(workdir, first_step=first, quiet=quiet)
        stack.callback(writer.close)
        progress = metrics.ProgressReport(first, train.steps, train.minutes * 60, quiet=quiet)
        stack.enter_context(progress)
        progress.message(_beginning(current, plan))
        saves.report = _say_nothing if quiet else progress.message
        clock = metrics.Clock(_ideal_seconds(flops, plan))
        result = _Turns(
            config=config,
            plan=plan,
            train_step=train_step,
            saves=saves,
            clock=clock,
            watch=_Watch(config, writer, progress, saves, clock, first),
            trace=stack.enter_context(_Trace(profile, workdir / "profile")),
            stop=stack.enter_context(_stop_on_signals()),
            say=progress.message,
            check_lock=lambda: processes.first_does(own.check),
            close_logs=writer.close,
            write_preview=lambda current, batch: _write_preview(
                preview, config, current, batch, workdir, writer, fps, saves.report
            ),
            started=started,
        ).run(current, batch, iterator)
        progress.message(_ending(result, saves))
    return result


def _first_state(stage, config, plan, tx, saves, iterator, initial) -> state.TrainState:
    """The state that a run begins with. A checkpoint's comes with the position of the data."""
    if saves.latest() is not None:
        abstract = state.abstract_state(stage, tx, plan)
        current, position = saves.restore(abstract, config, fallback=config.checkpoint.fallback)
        iterator.set_state(position)
        return current
    if initial is not None:
        return state.from_params(stage, initial(), tx, plan)
    return state.create_state(stage, tx, config.train.seed, plan)


def _first_batch(iterator: Iterator, train, plan: sharding.Plan) -> Any:
    """The first batch, for which the data workers start. Raises ValueError if it does not fit."""
    with _signals_ignored_by_children():
        batch = next(iterator)
    step.check_batch(batch, len(plan.rows(train.batch_size)))
    return batch


def _beginning(current: state.TrainState, plan: sharding.Plan) -> str:
    first = int(current.step)
    return (
        f"{f'resuming at step {first}' if first else 'starting'}: "
        f"{state.count_parameters(current.params):,} parameters on "
        f"{plan.mesh.size} device{'s' * (plan.mesh.size > 1)}"
    )


def _ending(result: Result, saves: checkpoints.Checkpoints) -> str:
    why = {"steps": "train.steps is reached", "minutes": "train.minutes are over"}
    return (
        f"stopped after step {result.step} ({why.get(result.reason, result.reason)}, "
        f"{result.seconds:.0f} s); saved in {saves.directory / str(result.step)}"
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Turns:
    """The turns of the loop, and what each of them uses."""

    config: Any
    plan: sharding.Plan
    train_step: step.TrainStep
    saves: checkpoints.Checkpoints
    clock: metrics.Clock
    watch: "_Watch"
    trace: "_Trace"
    stop: "_Stop"
    say: Callable[[str], object]
    check_lock: Callable[[], object]
    close_logs: Callable[[], object]
    write_preview: Callable[[state.TrainState, Any], None]
    started: float

    def run(self, current: state.TrainState, batch: Any, iterator: Iterator) -> Result:
        """Updates until the run ends, and saves. batch: the first one, which was read already."""
        train = self.config.train
        done = first = int(current.step)
        in_flight, reason = _NOTHING, "steps"
        while done < train.steps:
            if done > first:
                with self.clock.measure("data_wait"):
                    batch = next(iterator)
            self.trace.before(done - first + 1)
            with jax.profiler.StepTraceAnnotation("train", step_num=done + 1):
                placed = self.plan.put_batch(batch, train.batch_size)
                current, sent = self.train_step(current, placed)
            if done == first:
                heap.trim()
            done += 1
            for leaf in sent.values():
                leaf.copy_to_host_async()
            # The update before this one: the device works on this one while the host reads.
            if in_flight:
                self.watch.see(done - 1, in_flight)
            in_flight = sent
            self.trace.after(done - first, sent)

            reason = self._why_to_stop(done)
            last = done == train.steps or reason != "steps"
            sampling = train.sample_every and done % train.sample_every == 0
            saving = last or done % self.config.checkpoint.every == 0
            if saving or sampling:
                self.watch.see(done, in_flight)
                in_flight = _NOTHING
                # A run that is told to go, or whose time is over, goes without a last sample.
                showing = sampling or (last and reason == "steps")
                self._pause(current, batch, iterator, saving, showing)
            if last:
                break
            self.saves.poll()
        self.saves.wait()
        seconds = time.monotonic() - self.started
        return Result(state=current, step=done, reason=reason, seconds=seconds)

    def _why_to_stop(self, done: int) -> str:
        """The signal or the limit for which the run ends after `done` updates, else "steps"."""
        train = self.config.train
        if signal_name := self.stop.reached(done):
            self.say(f"{signal_name}: saving; once more to abort without saving")
            return signal_name
        over = time.monotonic() - self.started >= train.minutes * 60
        if train.minutes and _agreed(over, done % train.log_every == 0):
            return "minutes"
        return "steps"

    def _pause(
        self, current: state.TrainState, batch: Any, iterator: Any, saving: bool, showing: bool
    ) -> None:
        with self.watch.paused():
            if saving:
                with self.clock.measure("checkpoint_wait"):
                    self.close_logs()
                    self.check_lock()
                    self.saves.save(current, iterator.get_state(), self.config)
            if showing:
                self.write_preview(current, batch)


class _Watch:
    """Reads the metrics of updates in order: skips bad ones as far as is allowed and stops at the
    next, logs every log_every."""

    def __init__(self, config, writer, progress, saves, clock, first: int):
        self._config, self._writer, self._progress, self._saves = config, writer, progress, saves
        self._clock = clock
        self._average = metrics.Averager()
        self._logged, self._logged_at = first, None

    def see(self, update: int, on_device: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in jax.device_get(on_device).items()}
        if not values.pop("finite"):
            budget = self._config.train.skip_nonfinite
            if values["skipped"] > budget:
                self._stop(update, values)
            self._progress.message(
                f"step {update}: {_what_is_not_finite(values)} is not finite; skipped "
                f"({values['skipped']:.0f} of train.skip_nonfinite = {budget})"
            )
        else:
            self._average.add(values)
        self._progress.step(update)
        now = time.monotonic()
        if self._logged_at is None:
            # The first update holds the compilation: speed is measured from its end.
            self._logged, self._logged_at = update, now
            self._clock.take(update)
        if update % self._config.train.log_every == 0:
            means = self._average.take()
            clips = (update - self._logged) * self._config.train.batch_size
            speed = clips / (now - self._logged_at) if clips else 0.0
            self._logged, self._logged_at = update, now
            shares = self._clock.take(update)
            self._writer.scalars(update, {**means, "clips_per_second": speed, **shares})
            self._progress.log(update, means.get("loss", math.nan), speed)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent within does not count into the speed."""
        begun = time.monotonic()
        yield
        if self._logged_at is not None:
            self._logged_at += time.monotonic() - begun

    def _stop(self, update: int, values: dict[str, float]) -> None:
        self._writer.scalars(update, values)
        with contextlib.suppress(checkpoints.CheckpointError):  # this error matters more
            self._saves.wait()
        latest = self._saves.latest()
        skipped = int(values["skipped"]) - 1
        before = f" after {skipped} such updates that were skipped" if skipped else ""
        good = (
            f"The last good checkpoint is {self._saves.directory / str(latest)}."
            if latest is not None
            else "No checkpoint had been saved yet."
        )
        raise NonFiniteError(
            f"step {update}: {_what_is_not_finite(values)} is not finite{before} (loss "
            f"{values['loss']}, gradient norm {values['grad_norm']}). The update was not "
            f"applied and nothing of it was saved. {good} A smaller train.learning_rate or "
            "train.clip_norm, or a look at the data, comes before going on."
        )


def _what_is_not_finite(values: dict[str, float]) -> str:
    return "the loss" if not math.isfinite(values["loss"]) else "a gradient"


def _write_preview(
    preview: previews.Preview,
    config,
    current: state.TrainState,
    batch: Any,
    workdir: Path,
    writer: metrics.MetricWriter,
    fps: float,
    report: Callable[[str], Any],
) -> None:
    """Writes the preview of the averaged parameters into one GIF.

    report: takes a line where the GIF cannot be written.
    """
    if not config.train.sample_every:
        return
    videos = preview(current, batch)
    if videos is None or jax.process_index() != 0:
        return
    update = int(current.step)
    path = workdir / "samples" / f"step_{update}.gif"
    try:
        tiled = video_io.grid(videos)
        video_io.write_gif(path, tiled, fps=fps)
        writer.video(update, "samples", video_io.enlarge(tiled, 64), fps)
    except Exception as error:  # a picture is not worth a run
        report(f"{path} could not be written: {error}")


def _say_nothing(text: str) -> None:
    pass


def _agreed(here: bool, asked: bool) -> bool:
    """What the first process says, at an update where all ask; alone, what this process says."""
    if jax.process_count() == 1:
        return here
    return asked and bool(multihost_utils.broadcast_one_to_all(np.asarray(here)))


def _ideal_seconds(flops: float, plan: sharding.Plan) -> float:
    """Seconds that an update of `flops` operations takes at the devices' peak, 0 if not known."""
    chip = chips.chip_of_device(plan.mesh.devices.flat[0].device_kind)
    return flops / (plan.mesh.size * chip.peak_flops_bf16) if chip else 0.0


class _Trace(contextlib.AbstractContextManager):
    """A trace of the updates from `span[0]` to `span[1]`, for XProf and TensorBoard."""

    def __init__(self, span: tuple[int, int] | None, directory: Path):
        self._first, self._last = span or (0, 0)
        self._directory, self._running = directory, False

    def before(self, update: int) -> None:
        if self._first and update == self._first:
            jax.profiler.start_trace(str(self._directory))
            self._running = True

    def after(self, update: int, outputs: PyTree) -> None:
        if self._running and update >= self._last:
            jax.block_until_ready(outputs)
            self.__exit__()

    def __exit__(self, *_) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False


@dataclasses.dataclass
class _Stop:
    signal: str = ""

    def reached(self, update: int) -> str:
        """The signal that the run stops for after `update`, the same one in every process."""
        if jax.process_count() == 1:
            return self.signal
        # JAX itself takes SIGTERM and agrees with the other processes on an update.
        return "SIGTERM" if multihost_utils.reached_preemption_sync_point(update) else ""


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[_Stop]:
    """Turns the first SIGINT or SIGTERM into a request; a second SIGINT acts as usual.

    A second SIGTERM is ignored: schedulers send it to processes and to their parents, who pass it
    on. Of several processes, one that is interrupted tells the others as if it were preempted.
    """
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only
        return
    several = jax.process_count() > 1
    previous = {}

    def request(number: int, _) -> None:
        # Nothing is printed here: the handler may have interrupted a print.
        stop.signal = signal.Signals(number).name
        signal.signal(signal.SIGINT, previous[signal.SIGINT])
        if several:
            os.kill(os.getpid(), signal.SIGTERM)

    for number in (signal.SIGINT,) if several else (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _signals_ignored_by_children() -> Iterator[None]:
    """Processes started within never see SIGINT and SIGTERM.

    A terminal sends Ctrl-C to every process of the run, a scheduler its notice. Data workers that
    died of it would leave the main process without the batches that it needs to stop cleanly. They
    end when it does. Blocking, unlike ignoring, leaves the handlers of this process alone.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
