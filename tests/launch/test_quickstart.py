import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from launch import quickstart
from vdm_jax.data import shapes


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Records the commands instead of running them; training takes as long as it was given."""
    commands = []
    clock = [0.0]

    def run(module, *arguments):
        commands.append((module, *arguments))
        for argument in arguments:
            if argument.startswith("--config.train.minutes="):
                clock[0] += 60 * float(argument.partition("=")[2])

    monkeypatch.setattr(quickstart, "_run", run)
    monkeypatch.setattr(quickstart.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(quickstart, "ROOT", tmp_path)
    return commands


def minutes_of(command):
    return float(
        dict(a.removeprefix("--").split("=", 1) for a in command[1:])["config.train.minutes"]
    )


def test_training_gets_what_sampling_and_earlier_work_leave():
    reserved = quickstart.RESERVED_SECONDS
    assert quickstart.training_seconds(15, spent=0, elapsed=40) == 900 - reserved - 40
    assert quickstart.training_seconds(15, spent=600, elapsed=0) == 300 - reserved
    assert quickstart.training_seconds(1, spent=600, elapsed=0) == 0


def test_training_that_is_over_is_not_run_again_and_more_minutes_go_on(runs, tmp_path, capsys):
    quickstart._train("vdm/own_videos", tmp_path, 15, 0.0, ["--config.train.seed=3"])
    assert minutes_of(runs[0]) == pytest.approx(15 - quickstart.RESERVED_SECONDS / 60, abs=1e-3)
    assert {"--config=vdm/own_videos", "--config.train.seed=3"} <= set(runs[0])

    now = quickstart.time.monotonic()
    quickstart._train("vdm/own_videos", tmp_path, 15, now, [])
    assert len(runs) == 1
    assert "sampling only" in capsys.readouterr().out

    quickstart._train("vdm/own_videos", tmp_path, 30, now, [])
    assert minutes_of(runs[1]) == pytest.approx(15, abs=0.01)


def test_the_model_that_ships_is_shown_once_before_anything_else(runs, tmp_path):
    out = tmp_path / "run" / "shipped"
    quickstart._first_look(tmp_path / "run")
    assert runs == [("sample", "--prompt=a red circle moving left", "--out=run/shipped")]
    out.mkdir(parents=True)
    (out / "samples.gif").touch()
    quickstart._first_look(tmp_path / "run")
    assert len(runs) == 1


def test_interrupted_training_is_remembered(runs, tmp_path, monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(quickstart.time, "monotonic", lambda: clock[0])

    def run(*_):
        clock[0] += 200
        raise quickstart.Stopped

    monkeypatch.setattr(quickstart, "_run", run)
    with pytest.raises(quickstart.Stopped):
        quickstart._train("vdm/own_videos", tmp_path, 15, 0.0, [])
    assert json.loads((tmp_path / "quickstart.json").read_text()) == {"trained_seconds": 200}


def test_captions_of_the_embedded_data_were_never_trained_on():
    import ml_collections

    for name in ("16x16x8", "16x16x8_two"):
        config = ml_collections.ConfigDict({"data": {"name": "moving_shapes", "config": name}})
        captions = quickstart.choose_captions(config)
        assert 0 < len(captions) <= quickstart.MOST_CAPTIONS
        assert len(set(captions)) == len(captions)
        for caption in captions:
            assert set(shapes.parse_caption(caption)) <= set(shapes.HELD_OUT)


def test_each_video_directory_has_its_own_run(tmp_path):
    one, other = tmp_path / "a" / "clips", tmp_path / "b" / "clips"
    assert quickstart.workdir_of(one) != quickstart.workdir_of(other)
    assert quickstart.workdir_of(one) != quickstart.workdir_of(None)
    assert quickstart.workdir_of(one) == quickstart.workdir_of(one)


def test_a_directory_is_looked_for_where_the_script_was_called(tmp_path, monkeypatch):
    (tmp_path / "clips").mkdir()
    monkeypatch.setenv("VDM_JAX_CALLER_DIR", str(tmp_path))
    assert quickstart._directory("clips") == (tmp_path / "clips").resolve()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--minutes=0"], "above 0"),
        (["--minutes=soon"], "above 0"),
        (["--videos=/nonexistent/clips"], "is no directory"),
        (["--minute=3"], "--minute=3"),
        (["--config.train.sed"], "--config.train.sed"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        quickstart.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_the_report_judges_the_very_samples_that_were_written(tmp_path, capsys):
    scene = shapes.scenes("held_out")[:2]
    videos = shapes.render_clips(scene, size=16, num_frames=8, seed=(0,))
    captions = [shapes.make_caption(s) for s in scene]
    np.savez(tmp_path / "samples.npz", video=videos, prompts=np.array([captions[0], captions[0]]))
    for name in ("0000.mp4", "0001.mp4"):
        (tmp_path / name).touch()
    quickstart._report(tmp_path, judged=True)
    out = capsys.readouterr().out
    assert "all three right 50% of 2" in out
    for name in ("samples.gif", "contact_sheet.png", "*.mp4"):
        assert str(tmp_path / name) in out


def test_a_failing_command_ends_the_quickstart_with_its_status(monkeypatch):
    with pytest.raises(SystemExit) as stopped:
        quickstart._run("no_such_command")
    assert stopped.value.code == 2


def test_a_termination_reaches_the_command_and_is_told(tmp_path, monkeypatch):
    (tmp_path / "waits.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        f"open({str(tmp_path / 'ready')!r}, 'w').close()\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(quickstart, "ROOT", tmp_path)
    monkeypatch.setattr(quickstart, "PROGRAM", "waits")

    def terminate():
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate, daemon=True).start()
    with pytest.raises(quickstart.Stopped):
        quickstart._run()


def test_help_needs_nothing_but_python():
    done = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            "import sys; sys.path.insert(0, '.');"
            "from launch import quickstart; quickstart.main(['--help'])",
        ],
        cwd=quickstart.ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "--videos DIR" in done.stdout
