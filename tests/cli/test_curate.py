"""`vdm data curate` and `vdm data report`: flags, messages, exit status."""

import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet
import pytest

from tests.data.curation import films
from vdm_jax.cli import curate, report_data
from vdm_jax.config import ConfigError
from vdm_jax.data.curation import engine
from vdm_jax.data.source import DataError

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("videos")
    films.write(root / "good.mp4", films.scene(1, 60))
    (root / "good.txt").write_text("clouds\n")
    films.write(root / "still.mp4", films.scene(2, 60, pan=(0, 0)))
    return root


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setattr(engine, "in_pool", lambda workers: films.serially)


def run(videos, out, *flags):
    return curate.main([f"--videos={videos}", f"--out={out}", *flags])


def kept(out):
    table = pyarrow.parquet.read_table(Path(out) / "clips.parquet").to_pylist()
    return [row["film"] for row in table if row["kept"]]


def test_results_are_named_and_written(videos, tmp_path, capsys):
    assert run(videos, tmp_path) == 0
    printed = capsys.readouterr().out
    assert "2 clips of 2 films, 1 kept" in printed
    assert "1 clips dropped for still" in printed
    assert "warning: 1 films have no captions" in printed
    assert "1 shards; data.name = 'video_shards'" in printed
    assert kept(tmp_path) == ["good.mp4"]
    assert (tmp_path / "report.html").is_file()
    assert (tmp_path / "train" / "shard-00000.array_record").is_file()


def test_settings_come_from_a_file_and_from_flags(videos, tmp_path, capsys):
    config = tmp_path / "settings.json"
    config.write_text(json.dumps({"keep": {"still": "", "motion": ""}, "clips": {"least": 1}}))
    run(videos, tmp_path / "out", f"--config={config}", "--measure_only")
    assert kept(tmp_path / "out") == ["good.mp4", "still.mp4"]
    assert not (tmp_path / "out" / "train").exists()
    flags = ("--measure_only", "--config.keep.brightness=:0.01", "--config.clips.least=1.5")
    run(videos, tmp_path / "out", f"--config={config}", *flags)
    assert kept(tmp_path / "out") == []
    capsys.readouterr()
    assert report_data.main([f"--out={tmp_path / 'out'}", "--config.keep.brightness="]) == 0
    assert capsys.readouterr().out.endswith("report.html: 2 of 2 clips are kept\n")
    assert kept(tmp_path / "out") == []  # the table stays


@pytest.mark.parametrize(
    "flags,error,message",
    [
        (["--config.clips.length=3"], ConfigError, "unknown field; the nearest is --config.clips"),
        (["--config.clips.least=x"], ConfigError, "'x' is not a number"),
        (["--config.keep.motion=high"], DataError, "must be LEAST:MOST"),
        (["--config=nothing.json"], DataError, "--config=nothing.json: cannot be read"),
    ],
)
def test_mistakes_in_settings_are_named(videos, tmp_path, flags, error, message):
    with pytest.raises(error, match=message):
        run(videos, tmp_path, *flags)


def test_the_report_takes_ranges_only_and_needs_a_table(tmp_path):
    with pytest.raises(ConfigError, match="--config.clips.least: the report takes config.keep"):
        report_data.main([f"--out={tmp_path}", "--config.clips.least=3"])
    with pytest.raises(DataError, match="clips.parquet: no table of vdm data curate"):
        report_data.main([f"--out={tmp_path}"])


def test_settings_are_listed(capsys):
    assert curate.main(["--help=settings"]) == 0
    printed = capsys.readouterr().out
    assert "--config.clips.most=60.0" in printed and "--config.keep.motion=0.02:" in printed


def test_a_missing_extra_is_named(videos, tmp_path, monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda m: None if m == "cv2" else find(m))
    with pytest.raises(ConfigError, match=r'cv2 is missing: pip install "vdm_jax\[curation\]"'):
        run(videos, tmp_path)


def command(folder, out, *flags):
    arguments = [f"--videos={folder}", f"--out={out}", "--measure_only", *flags]
    return [sys.executable, "-m", "vdm_jax", "data", "curate", *arguments]


def processes(out):
    """Numbers of the processes of a run, whose environment names its folder."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if str(out) in (entry / "environ").read_text(errors="replace"):
                found.append(int(entry.name))
    return [number for number in found if number != os.getpid()]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_a_run_that_is_killed_leaves_no_process_and_goes_on(videos, tmp_path):
    """Real processes: one that is killed when the first film is known, and one that finishes.

    The exit status of the second says that a film could not be used.
    """
    folder, out = tmp_path / "videos", tmp_path / "out"
    folder.mkdir()
    (folder / "good.mp4").symlink_to(videos / "good.mp4")
    (folder / "bad.mp4").write_text("no film")
    environment = {**os.environ, "MARK": str(out)}
    process = subprocess.Popen(
        command(folder, out, "--workers=2"), cwd=ROOT, env=environment, stdout=subprocess.PIPE
    )
    printed = b""
    while b"identified" not in printed and (more := process.stdout.read(1)):
        printed += more
    process.kill()
    process.wait()
    deadline = time.monotonic() + 60
    while processes(out) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes(out) == []
    done = subprocess.run(
        command(folder, out, "--workers=1"), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == curate.SOME_FAILED, done.stderr
    assert "1 films could not be used" in done.stderr
    assert kept(out) == ["good.mp4"]
