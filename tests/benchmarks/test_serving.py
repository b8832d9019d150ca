import mmap
import sys

import pytest

from benchmarks import serving

WORKER = """
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


def test_the_peak_is_that_of_what_came_after_the_reset():
    serving.reset_peak()
    before = serving.peak_resident()
    # A mapping of its own: from the heap it could be memory that is held already.
    with mmap.mmap(-1, 64 << 20) as held:
        held[::4096] = b"x" * len(held[::4096])
    assert serving.peak_resident() - before > 60 << 20
