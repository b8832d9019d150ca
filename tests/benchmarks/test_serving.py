import contextlib
import mmap
import sys
import time
from pathlib import Path

import pytest

from benchmarks import serving

WORKER = """
import subprocess
import time
from benchmarks import serving

def crash():
    import os
    os._exit(7)

def fail(what):
    print("this goes to the other output")
    raise ValueError(f"no {what}\\nand more")

serving.serve(lambda: {
    "add": lambda a, b: a + b, "fail": fail, "crash": crash, "sleep": lambda: time.sleep(60),
    "start": lambda: subprocess.Popen(["sleep", "120"]).pid,
})
"""


@pytest.fixture
def worker():
    made = serving.Worker("test", [sys.executable, "-c", WORKER])
    yield made
    made.close(kill=True)


def test_answers_and_failures_come_back(worker):
    assert worker.ask("add", limit=60, a=1, b=2) == 3
    with pytest.raises(serving.WorkerError, match="^ValueError: no reason$"):
        worker.ask("fail", limit=60, what="reason")
    assert worker.ask("add", limit=60, a=2, b=2) == 4  # a failure is not the end
    with pytest.raises(serving.WorkerError, match="status 7"):
        worker.ask("crash", limit=60)


def test_what_takes_too_long_is_ended(worker):
    assert worker.ask("add", limit=60, a=0, b=0) == 0
    with pytest.raises(serving.WorkerError, match=r"sleep took more than 0\.2 s"):
        worker.ask("sleep", limit=0.2)
    with pytest.raises(serving.WorkerError, match="has ended"):
        worker.ask("add", limit=60, a=0, b=0)


def test_what_a_worker_started_ends_with_it(worker):
    child = worker.ask("start", limit=60)
    worker.close()
    ends = time.monotonic() + 30
    with contextlib.suppress(FileNotFoundError):  # or a zombie, until whoever took it reaps it
        while Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
            assert time.monotonic() < ends
            time.sleep(0.05)


def test_the_peak_is_that_of_what_came_after_the_reset():
    serving.reset_peak()
    before = serving.peak_resident()
    # A mapping of its own: from the heap it could be memory that is held already.
    with mmap.mmap(-1, 64 << 20) as held:
        held[::4096] = b"x" * len(held[::4096])
    assert serving.peak_resident() - before > 60 << 20
