"""The training loop.

The order of one turn, which resuming depends on: (1) batch k is read, (2) update k is sent to the
device, (3) the metrics of update k-1 arrive, so the device never waits for the host, and a value
that is not finite stops the run, (4) at a checkpoint, and only there, the host waits for update k
too; then the state after update k is saved with the iterator, which stands after batch k.
"""

import contextlib
import dataclasses
import math
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vdm_jax import config as config_lib
from vdm_jax import sampling, video_io
from vdm_jax.training import checkpoints, metrics, optimizer, state, step

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
    fps: float = 8,
    train_step: step.TrainStep | None = None,
) -> Result:
    """Trains `stage` in `workdir` until train.steps, train.minutes, Ctrl-C or SIGTERM, and saves.

    dataset: an iterable of batches whose iterator has get_state and set_state (grain), endless. A
    checkpoint in `workdir` is resumed, bit for bit as if the run had never stopped. fps: of the
    sample GIFs. train_step: one compiled already for the same stage and config.

    Writes checkpoints/, config.json, metrics.jsonl, tensorboard/ and samples/step_N.gif. Raises
    NonFiniteError, CheckpointError.
    """
    workdir = Path(workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    train = config.train
    sampler = _make_sampler(stage, config)
    tx = optimizer.make_optimizer(train)
    train_step = train_step or step.make_train_step(stage, tx, config)
    started = time.monotonic()

    with contextlib.ExitStack() as stack:
        saves = checkpoints.Checkpoints(workdir, keep=config.checkpoint.keep)
        stack.callback(saves.close)
        iterator = iter(dataset)
        if hasattr(iterator, "close"):
            stack.callback(iterator.close)
        if saves.latest() is not None:
            current = saves.restore(state.abstract_state(stage, tx), iterator, config)
        else:
            current = state.create_state(stage, tx, train.seed)
        first = int(current.step)
        if first < train.steps:
            with _signals_ignored_by_children():
                batch = next(iterator)  # starts the data workers
            step.check_batch(batch, train.batch_size)
        (workdir / "config.json").write_text(config_lib.to_json(config))

        writer = metrics.MetricWriter(workdir, first_step=first)
        stack.callback(writer.close)
        progress = stack.enter_context(
            metrics.ProgressReport(first, train.steps, seconds=train.minutes * 60)
        )
        progress.message(
            f"{'resuming at step ' + str(first) if first else 'starting'}: "
            f"{state.count_parameters(current.params):,} parameters"
        )
        stop = stack.enter_context(_stop_on_signals())
        watch = _Watch(config, writer, progress, saves, first)

        done, in_flight = first, _NOTHING
        reason = "steps"
        while done < train.steps:
            if done > first:
                batch = next(iterator)
            current, sent = train_step(current, batch)
            done += 1
            for leaf in sent.values():
                leaf.copy_to_host_async()
            # The update before this one: the device works on this one while the host reads.
            if in_flight:
                watch.see(done - 1, in_flight)
            in_flight = sent

            if train.minutes and time.monotonic() - started >= train.minutes * 60:
                reason = "minutes"
            if stop.signal:
                reason = stop.signal
                progress.message(f"{reason}: saving; once more to abort without saving")
            last = done == train.steps or reason != "steps"
            sampling_due = train.sample_every and done % train.sample_every == 0
            if last or sampling_due or done % config.checkpoint.every == 0:
                watch.see(done, in_flight)
                in_flight = _NOTHING
                with watch.paused():
                    if last or done % config.checkpoint.every == 0:
                        saves.save(current, iterator, config)
                    # A run that is told to go, or whose time is over, goes without a last sample.
                    if sampling_due or (last and reason == "steps"):
                        _write_samples(sampler, config, current, workdir, writer, fps)
            if last:
                break
        saves.wait()
        seconds = time.monotonic() - started
        why = {"steps": "train.steps is reached", "minutes": "train.minutes are over"}
        progress.message(
            f"stopped after step {done} ({why.get(reason, reason)}, {seconds:.0f} s); "
            f"saved in {saves.directory / str(done)}"
        )
    return Result(state=current, step=done, reason=reason, seconds=seconds)


class _Watch:
    """Reads the metrics of updates in order: stops at the first bad one, logs every log_every."""

    def __init__(self, config, writer, progress, saves, first: int):
        self._config, self._writer, self._progress, self._saves = config, writer, progress, saves
        self._average = metrics.Averager()
        self._logged, self._logged_at = first, None

    def see(self, update: int, on_device: dict[str, jax.Array]) -> None:
        values = {name: float(value) for name, value in jax.device_get(on_device).items()}
        if not values.pop("finite"):
            self._stop(update, values)
        self._average.add(values)
        self._progress.step(update)
        now = time.monotonic()
        if self._logged_at is None:
            # The first update holds the compilation: speed is measured from its end.
            self._logged, self._logged_at = update, now
        if update % self._config.train.log_every == 0:
            means = self._average.take()
            clips = (update - self._logged) * self._config.train.batch_size
            speed = clips / (now - self._logged_at) if clips else 0.0
            self._logged, self._logged_at = update, now
            self._writer.scalars(update, {**means, "clips_per_second": speed})
            self._progress.log(update, means["loss"], speed)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Time spent within does not count into the speed."""
        begun = time.monotonic()
        yield
        if self._logged_at is not None:
            self._logged_at += time.monotonic() - begun

    def _stop(self, update: int, values: dict[str, float]) -> None:
        self._writer.scalars(update, values)
        self._saves.wait()
        latest = self._saves.latest()
        what = "the loss" if not math.isfinite(values["loss"]) else "a gradient"
        good = (
            f"The last good checkpoint is {self._saves.directory / str(latest)}."
            if latest is not None
            else "No checkpoint had been saved yet."
        )
        raise NonFiniteError(
            f"step {update}: {what} is not finite (loss {values['loss']}, gradient norm "
            f"{values['grad_norm']}). The update was not applied and nothing of it was saved. "
            f"{good} A smaller train.learning_rate or train.clip_norm, or a look at the data, "
            "comes before going on."
        )


def _make_sampler(stage, config) -> sampling.Sampler:
    """The sampler of train.sample_prompts. A wrong setting or an unknown word is told now."""
    prompts = config.train.sample_prompts
    if config.train.sample_every and prompts:
        stage.encode_prompts(list(prompts))
    return sampling.Sampler.from_config(stage, config.sample, batch_size=max(len(prompts), 1))


def _write_samples(
    sampler: sampling.Sampler,
    config,
    current: state.TrainState,
    workdir: Path,
    writer: metrics.MetricWriter,
    fps: float,
) -> None:
    """Samples train.sample_prompts with the averaged parameters into one GIF."""
    prompts = list(config.train.sample_prompts)
    if not config.train.sample_every or not prompts:
        return
    update = int(current.step)
    key = state.derive_key(config.train.seed, update, state.SAMPLE)
    tiled = video_io.grid(np.concatenate(list(sampler.stream(current.ema, key, prompts))))
    video_io.write_gif(workdir / "samples" / f"step_{update}.gif", tiled, fps=fps)
    writer.video(update, "samples", video_io.enlarge(tiled, 64), fps)


@dataclasses.dataclass
class _Stop:
    signal: str = ""


@contextlib.contextmanager
def _stop_on_signals() -> Iterator[_Stop]:
    """Turns the first SIGINT or SIGTERM into a request; a second one acts as usual."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # Python delivers signals to the main thread only
        return

    previous = {}

    def request(number: int, _) -> None:
        # Nothing is printed here: the handler may have interrupted a print.
        stop.signal = signal.Signals(number).name
        for each, handler in previous.items():
            signal.signal(each, handler)

    for number in (signal.SIGINT, signal.SIGTERM):
        previous[number] = signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _signals_ignored_by_children() -> Iterator[None]:
    """Processes started within ignore SIGINT.

    A terminal sends Ctrl-C to every process of the run. Data workers that died of it would leave
    the main process without the batches that it needs to stop cleanly.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
