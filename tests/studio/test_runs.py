"""What vdm watch shows of runs that go on, have not begun, or were damaged."""

import json
import os
import time

import numpy as np
import pytest

from vdm_jax.data import video_io
from vdm_jax.pipelines import cascade_file
from vdm_jax.studio import charts, markup, runs, watch_page
from vdm_jax.training import lock, metrics, step_folders


@pytest.fixture
def run(tmp_path):
    """A run of 1,000 updates after 40, by what training writes with."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"train": {"steps": 1000}}))
    writer = metrics.MetricWriter(folder)
    for step in range(10, 41, 10):
        values = {"loss": 8.0 / step, "clips_per_second": 32.0, "step_seconds": 0.5}
        writer.scalars(step, values)
    writer.close()
    for step in (10, 40):
        video = np.zeros((2, 8, 8, 3), np.uint8)
        video_io.write_gif(folder / "samples" / f"step_{step}.gif", video, 8)
    for step in (20, 40):
        step_folders.make(folder / "checkpoints" / str(step))
        (folder / "checkpoints" / str(step) / "meta").write_text("{}")
    step_folders.complete(folder / "checkpoints" / "20")
    return folder


def test_a_run_is_read_from_the_files_of_training(run):
    found = runs.read(run)
    assert (found.step, found.steps) == (40, 1000)
    assert found.curves["loss"] == [(10, 0.8), (20, 0.4), (30, pytest.approx(8 / 30)), (40, 0.2)]
    assert [step for step, _ in found.samples] == [10, 40]
    assert [step for step, _ in found.checkpoints] == [20]  # 40 is being written
    assert not found.notes
    assert "Stopped at step 40 of 1,000" in found.state


def test_a_held_lock_means_that_the_run_goes_on(run):
    with lock.Lock(run):
        assert runs.read(run).state == "Running: step 40 of 1,000, 8 min left."
        old = time.time() - 3600
        os.utime(run / lock.FILE, (old, old))  # its heart stopped
        assert "Stopped" in runs.read(run).state


def test_a_line_that_is_half_written_is_left_out_without_a_word(run):
    with (run / metrics.LOG_NAME).open("a") as file:
        file.write('{"step": 50, "lo')
    found = runs.read(run)
    assert found.step == 40 and not found.notes
    with (run / metrics.LOG_NAME).open("a") as file:
        file.write('ss": 0.1}\n')
    assert runs.read(run).step == 50


def test_damaged_files_are_named_and_the_rest_is_shown(run):
    with (run / metrics.LOG_NAME).open("ab") as file:
        file.write(b'\xff\xfe not JSON\n[1]\n{"step": 50, "loss": NaN}\n')
    (run / "config.json").write_text('{"train": ')
    (run / "evaluation").mkdir()
    (run / "evaluation" / "fvd.json").write_text("[{")
    found = runs.read(run)
    assert found.step == 50 and found.curves["loss"][-1] == (40, 0.2)  # NaN is no point
    assert "2 of 7 lines" in found.notes[0] and len(found.notes) == 3


def test_a_run_that_is_not_there_yet_is_waited_for(tmp_path):
    watched = watch_page.Watched([tmp_path / "later"])
    assert "no such folder yet" in watched.show()
    (tmp_path / "later").mkdir()
    assert "Nothing is logged yet" in watched.show()
    metrics.MetricWriter(tmp_path / "later").scalars(1, {"loss": 1.0})
    assert "step 1" in watched.show()


def test_the_page_is_made_anew_only_when_files_have_changed(run, monkeypatch):
    watched, reads = watch_page.Watched([run]), []
    read = runs.read
    monkeypatch.setattr(runs, "read", lambda *of: reads.append(of) or read(*of))
    first = watched.show()
    assert watched.show() is first and len(reads) == 1
    video_io.write_gif(run / "samples" / "step_50.gif", np.zeros((2, 8, 8, 3), np.uint8), 8)
    assert "step_50.gif" in watched.show() and len(reads) == 2


def test_folders_of_runs_and_cascades_are_their_runs(run, tmp_path):
    assert runs.find([tmp_path]) == [run]
    assert runs.find([run, tmp_path / "later"]) == [run, tmp_path / "later"]
    folder = tmp_path / "cascade"
    cascade_file.write(folder, ["b", "a"], {})
    assert runs.find([folder]) == [folder / "b", folder / "a"]
    assert runs.names([tmp_path / "x" / "a", tmp_path / "y" / "a"]) == ["x/a", "y/a"]


def test_long_curves_are_thinned_and_keep_their_ends():
    points = [(step, float(step)) for step in range(10_000)]
    thinned = runs._thinned(points)
    assert len(thinned) == runs.POINTS
    assert thinned[0] == points[0] and thinned[-1] == points[-1]


def test_runs_share_charts_and_names_are_escaped(run):
    one = runs.read(run, "<b>one</b>")
    page = markup.watched([one, runs.read(run, "two")])
    assert page.count("<svg") == 2  # loss and speed, of both runs
    assert page.count("<section>") == 2
    assert "<b>one" not in page and "&lt;b&gt;one" in page


def test_a_wide_range_is_drawn_on_a_logarithmic_axis():
    assert charts.is_wide([10.0, 0.1])
    assert not charts.is_wide([1.0, 0.9])
    assert not charts.is_wide([10.0, 0.0])  # zero has no logarithm


def test_nothing_is_drawn_where_no_run_has_points():
    assert charts.draw("Loss", {"a": []}, {"a": charts.colour(0)}) == ""
    assert charts.draw("Loss", {"a": [(1, 2.0)]}, {"a": charts.colour(0)}).startswith("<svg")
