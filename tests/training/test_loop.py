"""The loop: resuming, stopping, refusing; on a stage of a few hundred parameters."""

import dataclasses
import itertools
import json
import os
import signal
import time
import types

import jax
import numpy as np
import pytest
from PIL import Image

from vdm_jax.training import checkpoints, lock, loop, metrics


class Watched:
    """A data set that records its batches and runs `at(k)` when batch k is read."""

    def __init__(self, dataset, at=lambda k: None, change=lambda k, batch: batch):
        self.dataset, self.at, self.change = dataset, at, change
        self.batches = []

    def __iter__(self):
        iterator = iter(self.dataset)
        outer = self

        class Iterator(type(iterator)):
            def __init__(self):
                self.__dict__ = iterator.__dict__

            def __next__(self):
                batch = iterator.__next__()
                outer.batches.append(batch)
                outer.at(len(outer.batches))
                return outer.change(len(outer.batches), batch)

        return Iterator()


def log_lines(workdir):
    return [json.loads(line) for line in (workdir / metrics.LOG_NAME).read_text().splitlines()]


@pytest.fixture(scope="module")
def uninterrupted(stage, make_config, make_dataset, train_step, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("uninterrupted")
    dataset = Watched(make_dataset())
    result = loop.train(stage, make_config(), workdir, dataset, train_step=train_step)
    return workdir, result, dataset.batches


@pytest.mark.parametrize("stopped_at", [1, 4])
def test_a_resumed_run_is_bit_identical(
    stopped_at, uninterrupted, stage, make_config, make_dataset, train_step, tmp_path,
    assert_trees_equal,
):  # fmt: skip
    workdir, whole, batches = uninterrupted
    first = Watched(make_dataset())
    config = make_config(steps=stopped_at)
    assert loop.train(stage, config, tmp_path, first, train_step=train_step).step == stopped_at
    second = Watched(make_dataset())
    compiled = train_step.compiled._cache_size()
    result = loop.train(stage, make_config(), tmp_path, second, train_step=train_step)

    assert result.step == whole.step == 6 and result.reason == "steps"
    assert_trees_equal(result.state, whole.state)  # parameters, EMA, optimiser and step
    # The data too, across the end of the first epoch (ten clips, batches of four).
    assert (len(first.batches), len(second.batches)) == (stopped_at, 6 - stopped_at)
    assert_trees_equal(first.batches + second.batches, batches)
    assert train_step.compiled._cache_size() == compiled  # nothing anew
    losses = {line["step"]: line["loss"] for line in log_lines(tmp_path)}
    full = {line["step"]: line["loss"] for line in log_lines(workdir)}
    assert set(losses) <= set(full) and losses[6] == full[6]


def test_the_averaged_parameters_can_be_read_alone(uninterrupted, stage, assert_trees_equal):
    workdir, result, _ = uninterrupted
    abstract = jax.eval_shape(stage.init, jax.random.key(0))
    assert_trees_equal(checkpoints.read_ema(workdir, abstract), result.state.ema)
    assert not np.array_equal(
        jax.tree.leaves(result.state.ema)[0], jax.tree.leaves(result.state.params)[0]
    )
    step, config = checkpoints.read_config(workdir)
    assert step == 6 and config.train.learning_rate == 1e-2


def test_the_log_has_each_step_once(uninterrupted, stage, make_config, make_dataset, train_step):
    workdir, _, _ = uninterrupted
    lines = log_lines(workdir)
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert {"loss", "grad_norm", "learning_rate", "ema_decay", "x_mse"} <= set(lines[0])
    # A run killed after logging step 8 whose last checkpoint is 6 logs 8 again, once.
    with (workdir / metrics.LOG_NAME).open("a") as file:
        file.write('{"step": 8, "loss": 1.0}\n{"step": 9, "lo')
    metrics.MetricWriter(workdir, first_step=6).close()
    assert [line["step"] for line in log_lines(workdir)] == [2, 4, 6]


def lock_of(workdir, **changes):
    """Writes the lock of this process, changed."""
    holder = dataclasses.replace(lock._this_process(), **changes)
    (workdir / lock.FILE).write_text(json.dumps(dataclasses.asdict(holder)))


def test_a_workdir_has_one_run(stage, make_config, make_dataset, train_step, tmp_path):
    lock_of(tmp_path)
    with pytest.raises(checkpoints.CheckpointError, match=f"in use by process {os.getpid()} on"):
        loop.train(stage, make_config(), tmp_path, make_dataset(), train_step=train_step)
    assert [path.name for path in tmp_path.iterdir()] == [lock.FILE]  # nothing was touched

    lock_of(tmp_path, pid=1 << 30)  # gone
    result = loop.train(
        stage, make_config(steps=2), tmp_path, make_dataset(), train_step=train_step
    )
    assert result.step == 2 and not (tmp_path / lock.FILE).exists()


def test_a_run_whose_lock_was_taken_saves_nothing_more(
    stage, make_config, make_dataset, train_step, tmp_path
):
    dataset = Watched(
        make_dataset(), at=lambda k: lock_of(tmp_path, host="other") if k == 4 else None
    )
    with pytest.raises(checkpoints.CheckpointError, match="taken over by process"):
        loop.train(stage, make_config(), tmp_path, dataset, train_step=train_step)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["2"]
    assert (tmp_path / lock.FILE).exists()  # the other one's


def test_a_picture_that_fails_does_not_end_the_run(tmp_path):
    train = types.SimpleNamespace(sample_every=1)
    current = types.SimpleNamespace(step=3)
    video = np.zeros((1, 2, 4, 4, 3), np.uint8)
    (tmp_path / "samples").write_text("a file in the place of the folder")
    told = []
    config = types.SimpleNamespace(train=train)
    preview = lambda *_: video  # noqa: E731
    loop._write_preview(preview, config, current, None, tmp_path, None, 8, told.append)
    assert len(told) == 1 and "step_3.gif could not be written" in told[0]


def nan(batch):
    """A batch whose loss is NaN: embeddings outside of the vocabulary are."""
    return {**batch, "tokens": np.full_like(batch["tokens"], 999)}


def test_a_bad_loss_stops_the_run_and_names_the_step(
    stage, make_config, make_dataset, train_step, tmp_path, assert_trees_equal
):
    def poison(k, batch):
        return nan(batch) if k == 4 else batch

    dataset = Watched(make_dataset(), change=poison)
    with pytest.raises(loop.NonFiniteError) as error:
        loop.train(stage, make_config(steps=20), tmp_path, dataset, train_step=train_step)
    message = str(error.value)
    assert message.startswith("step 4: the loss is not finite") and str(tmp_path) in message
    assert message.count("checkpoints/2") == 1
    assert len(dataset.batches) <= 6  # a few steps late at most
    # What is there is the checkpoint before, whole; and the log is still JSON.
    assert checkpoints.read_config(tmp_path)[0] == 2
    assert log_lines(tmp_path)[-1]["loss"] == "nan"

    healthy = loop.train(
        stage, make_config(steps=3), tmp_path, make_dataset(), train_step=train_step
    )
    assert healthy.step == 3
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(healthy.state.params))


def test_a_bad_step_at_a_checkpoint_is_not_saved(
    stage, make_config, make_dataset, train_step, tmp_path
):
    def change(k, batch):
        return nan(batch) if k == 4 else batch  # checkpoints are due at 2, 4, ...

    with pytest.raises(loop.NonFiniteError, match="step 4"):
        dataset = Watched(make_dataset(), change=change)
        loop.train(stage, make_config(), tmp_path, dataset, train_step=train_step)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["2"]


def poisoned(make_dataset, *bad):
    """A data set whose batches number `bad` hold a NaN."""

    def change(k, batch):
        return nan(batch) if k in bad else batch

    return Watched(make_dataset(), change=change)


def test_bad_updates_are_skipped_and_counted_as_far_as_is_allowed(
    stage, make_config, make_dataset, train_step, tmp_path, capfd, assert_trees_equal
):
    config = make_config(skip_nonfinite=2)
    result = loop.train(
        stage, config, tmp_path / "all", poisoned(make_dataset, 2, 5), train_step=train_step
    )
    assert (result.step, result.state.skipped) == (6, 2)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(result.state.params))
    told = capfd.readouterr().out
    assert "step 2: the loss is not finite; skipped (1 of train.skip_nonfinite = 2)" in told
    assert "step 5: the loss is not finite; skipped (2 of" in told
    lines = {line["step"]: line for line in log_lines(tmp_path / "all")}
    assert lines[6]["skipped"] == 2 and np.isfinite(lines[2]["loss"])

    # The count is part of the state, so that a run which is restarted does not begin anew.
    first = loop.train(
        stage, make_config(skip_nonfinite=2, steps=4), tmp_path / "two",
        poisoned(make_dataset, 2), train_step=train_step,
    )  # fmt: skip
    assert first.state.skipped == 1
    with pytest.raises(loop.NonFiniteError, match="step 5: the loss is not finite after 1 such"):
        config = make_config(skip_nonfinite=1)
        dataset = poisoned(make_dataset, 1)  # the fifth batch of all
        loop.train(stage, config, tmp_path / "two", dataset, train_step=train_step)


def test_the_log_says_where_the_time_went(
    uninterrupted, stage, make_config, make_dataset, train_step, tmp_path
):
    lines = log_lines(uninterrupted[0])
    shares = [line["data_wait"] + line["checkpoint_wait"] for line in lines]
    assert all(0 <= share <= 1 for share in shares) and lines[-1]["checkpoint_wait"] > 0
    assert all(line["step_seconds"] > 0 for line in lines)

    slow = Watched(make_dataset(), at=lambda k: time.sleep(0.2))
    loop.train(stage, make_config(), tmp_path, slow, train_step=train_step)
    last = log_lines(tmp_path)[-1]
    assert last["data_wait"] * last["step_seconds"] >= 0.2


def test_utilisation_is_the_share_of_the_peak():
    clock = metrics.Clock(ideal_seconds=0.01)
    assert clock.take(0) == {}
    time.sleep(0.1)
    values = clock.take(4)
    assert values["mfu"] == pytest.approx(0.01 / values["step_seconds"])
    assert "mfu" not in metrics.Clock().take(1)


def test_a_trace_of_some_updates_is_written(stage, make_config, make_dataset, train_step, tmp_path):
    config = make_config(steps=4)
    loop.train(stage, config, tmp_path, make_dataset(), train_step=train_step, profile=(2, 3))
    [trace] = (tmp_path / "profile").rglob("*.xplane.pb")
    assert trace.stat().st_size > 1000


def test_a_run_starts_from_given_parameters(
    uninterrupted, stage, make_config, make_dataset, train_step, tmp_path
):
    _, whole, _ = uninterrupted

    def initial():
        return jax.tree.map(lambda leaf: leaf + 0.5, whole.state.ema)

    config = make_config(steps=1, learning_rate=1e-9, weight_decay=0.0)
    result = loop.train(stage, config, tmp_path, make_dataset(), initial=initial)
    for after, before in zip(
        jax.tree.leaves(result.state.params), jax.tree.leaves(whole.state.ema), strict=True
    ):
        np.testing.assert_allclose(after, before + 0.5, atol=1e-6)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_ends_the_run(
    number, stage, make_config, make_dataset, train_step, tmp_path, capfd
):
    before = signal.getsignal(number)
    dataset = Watched(make_dataset(), at=lambda k: k == 3 and os.kill(os.getpid(), number))
    result = loop.train(stage, make_config(), tmp_path, dataset, train_step=train_step)
    assert (result.step, result.reason) == (3, signal.Signals(number).name)
    assert checkpoints.read_config(tmp_path)[0] == 3
    assert "saving; once more to abort" in capfd.readouterr().out
    assert signal.getsignal(number) is before


def test_the_second_signal_aborts(stage, make_config, make_dataset, train_step, tmp_path):
    usual = signal.getsignal(signal.SIGINT)

    def twice(k):
        if k == 3:
            os.kill(os.getpid(), signal.SIGINT)
            # Signals do not queue: a second one sent before the first was taken would be lost.
            while signal.getsignal(signal.SIGINT) is not usual:
                time.sleep(0.001)
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        dataset = Watched(make_dataset(), at=twice)
        loop.train(stage, make_config(), tmp_path, dataset, train_step=train_step)
    assert checkpoints.read_config(tmp_path)[0] == 2


def test_minutes_end_the_run(stage, make_config, make_dataset, train_step, tmp_path):
    config = make_config(steps=10**6, minutes=0.5 / 60)
    result = loop.train(stage, config, tmp_path, make_dataset(), train_step=train_step)
    assert result.reason == "minutes" and 0 < result.step < 10**6
    assert checkpoints.read_config(tmp_path)[0] == result.step


def test_another_configuration_is_refused_naming_the_fields(
    uninterrupted, stage, make_config, make_dataset, train_step
):
    workdir, _, _ = uninterrupted
    config = make_config(learning_rate=0.5, steps=7)
    with pytest.raises(checkpoints.CheckpointError) as error:
        loop.train(stage, config, workdir, make_dataset(), train_step=train_step)
    assert "train.learning_rate: 0.01 -> 0.5" in str(error.value)
    assert "train.steps" not in str(error.value)


def test_samples_are_written(stage, make_config, make_dataset, train_step, tmp_path):
    config = make_config(steps=2, sample_every=2, sample_prompts=("red left", "green right"))
    loop.train(stage, config, tmp_path, make_dataset(), train_step=train_step)
    with Image.open(tmp_path / "samples" / "step_2.gif") as image:
        assert image.n_frames == 3
        assert image.width > image.height  # two clips side by side
    events = b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    assert b"GIF89a" in events and b"train/loss" in events


def test_an_unknown_word_stops_the_run_before_the_first_step(
    stage, make_config, make_dataset, train_step, tmp_path
):
    config = make_config(sample_every=2, sample_prompts=("purple left",))
    dataset = Watched(make_dataset())
    with pytest.raises(ValueError, match="^train.sample_prompts: .*purple"):
        loop.train(stage, config, tmp_path, dataset, train_step=train_step)
    assert not dataset.batches


def test_a_wrong_batch_size_is_told(stage, make_config, make_dataset, train_step, tmp_path):
    with pytest.raises(ValueError, match=r"train.batch_size = 4, but .* video \(3, 3, 4, 4, 3\)"):
        dataset = make_dataset(batch_size=3)
        loop.train(stage, make_config(), tmp_path, dataset, train_step=train_step)


def test_progress_lines_without_a_terminal(capfd):
    with metrics.ProgressReport(0, 100) as report:
        for step in itertools.islice(itertools.count(1), 10):
            report.step(step)
        report.log(10, 0.5, 12.0)
    line = capfd.readouterr().out.strip()
    assert line.startswith("step 10/100  loss 0.5000  12.0 clips/s  ETA 0:00:0")
