"""The lock of a working directory, with real processes that are really killed."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from vdm_jax.training import lock
from vdm_jax.training.integrity import CheckpointError

# Takes the lock, says so, and keeps it until its input ends.
HOLDER = """
import sys
from vdm_jax.training import lock
try:
    with lock.Lock(sys.argv[1], lambda text: print(text, file=sys.stderr), beat=0.1, stale=1.5):
        print("held", flush=True)
        sys.stdin.read()
except lock.CheckpointError as error:
    print(error, flush=True)
    sys.exit(1)
"""


@pytest.fixture
def start():
    running = []

    def start(workdir):
        """A process, and the first thing that it says."""
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(workdir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        running.append(process)
        return process, process.stdout.readline()

    yield start
    for process in running:
        process.kill()
        process.wait()


def write(workdir, **changes):
    """A lock of this process, changed."""
    holder = dataclasses.replace(lock._this_process(), **changes)
    (workdir / lock.FILE).write_text(json.dumps(dataclasses.asdict(holder)))
    return workdir / lock.FILE


def quick(workdir, reports=None):
    report = (lambda text: None) if reports is None else reports.append
    return lock.Lock(workdir, report, beat=0.1, stale=1.5)


def test_the_second_run_is_refused_with_who_holds_it(start, tmp_path):
    first, said = start(tmp_path)
    assert said == "held\n"
    second, said = start(tmp_path)
    assert f"is in use by process {first.pid} on {socket.gethostname()}" in said
    assert second.wait() == 1
    with pytest.raises(CheckpointError, match=f"process {first.pid}"):
        quick(tmp_path).acquire()
    first.stdin.close()
    assert first.wait() == 0 and not list(tmp_path.iterdir())  # nothing is left
    assert start(tmp_path)[1] == "held\n"


def test_a_killed_holder_is_followed_at_once(start, tmp_path):
    """Its parent has not noticed its end: the process is a zombie, and does not run."""
    first, _ = start(tmp_path)
    first.send_signal(signal.SIGKILL)
    while lock._started(first.pid) is not None:
        time.sleep(0.01)
    reports = []
    begun = time.monotonic()
    with quick(tmp_path, reports) as taken:
        assert time.monotonic() - begun < taken._stale  # not by waiting for its heartbeat
        assert len(reports) == 1 and f"the run of process {first.pid}" in reports[0]
        assert json.loads(taken.path.read_text())["pid"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_one_of_many_follows(start, tmp_path):
    write(tmp_path, pid=1 << 30)
    said = [None] * 4

    def one(number):
        said[number] = start(tmp_path)[1]

    threads = [threading.Thread(target=one, args=[number]) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(text.split()[0] for text in said).count("held") == 1
    assert sum("is in use by process" in text for text in said) == 3
    assert [path.name for path in tmp_path.iterdir()] == [lock.FILE]


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="needs /proc")
def test_a_later_process_of_the_same_number_is_another(tmp_path):
    write(tmp_path, started=1)
    with quick(tmp_path):
        pass
    write(tmp_path)
    with pytest.raises(CheckpointError, match=f"process {os.getpid()}"):
        quick(tmp_path).acquire()


@pytest.mark.parametrize("elsewhere", [{"host": "other"}, {"machine": "another boot pid:[1]"}])
def test_elsewhere_the_heartbeat_decides(elsewhere, tmp_path):
    """Process numbers of another machine, or of another container, mean nothing here."""
    path = write(tmp_path, pid=1 << 30, **elsewhere)
    beating = threading.Event()

    def beat():
        while not beating.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=beat)
    thread.start()
    reports = []
    with pytest.raises(CheckpointError, match=f"in use by process {1 << 30}"):
        quick(tmp_path, reports).acquire()
    beating.set()
    thread.join()
    assert "waiting up to" in reports[0]

    os.utime(path, (time.time() - 3600,) * 2)  # an hour ago: no need to wait
    reports.clear()
    with quick(tmp_path, reports):
        assert len(reports) == 1 and "is gone" in reports[0]

    path = write(tmp_path, pid=1 << 30, **elsewhere)  # just stopped: waited for
    reports.clear()
    with quick(tmp_path, reports):
        assert ["waiting" in reports[0], "is gone" in reports[1]] == [True, True]


def test_the_heart_beats(tmp_path):
    with quick(tmp_path) as held:
        os.utime(held.path, (0, 0))
        until = time.monotonic() + 20
        while held.path.stat().st_mtime == 0 and time.monotonic() < until:
            time.sleep(0.02)
        assert held.path.stat().st_mtime > 0


def test_a_file_that_is_not_whole_is_judged_by_its_age(tmp_path):
    path = tmp_path / lock.FILE
    path.write_text('{"host": "oth')
    os.utime(path, (1, 1))
    with quick(tmp_path) as taken:
        taken.check()


def test_a_run_that_lost_its_lock_stops(tmp_path):
    held = quick(tmp_path)
    held.acquire()
    held.check()
    held.path.unlink()
    held.check()  # the file was deleted, and nobody came
    assert held.path.exists()
    path = write(tmp_path, host="other", pid=7)
    with pytest.raises(CheckpointError, match="taken over by process 7 on other"):
        held.check()
    held.release()
    assert path.exists()  # it is the other one's


def test_a_file_system_without_hard_links(tmp_path, monkeypatch):
    def link(*_):
        raise PermissionError("no hard links")

    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(lock, "_SETTLE", 0)
    with quick(tmp_path) as held:
        held.check()
        with pytest.raises(CheckpointError, match="is in use"):
            quick(tmp_path).acquire()
    assert not list(tmp_path.iterdir())


def test_a_workdir_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match=r"run\.lock cannot be made: .*"):
        quick(tmp_path / "file").acquire()
