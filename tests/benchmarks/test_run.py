"""How benchmarks.run takes turns; the sides are processes that do nothing but note when."""

import sys
import time
from types import SimpleNamespace

import pytest

from benchmarks import run

SIDE = """
import time
from benchmarks import serving

def note(what, answer):
    with open({log!r}, "a") as file:
        file.write({name!r} + " " + what + chr(10))
    return answer

def prepare(work, warmup):
    if {name!r} == "broken":
        raise ValueError("no such layer")
    if {name!r} == "slow":
        note("compiles", None)
        time.sleep(120)
    return note("prepares", {{"compile_s": 1.0, "cold": True}})

serving.serve(lambda: {{
    "describe": lambda: {{"parameters": 1, "flops": 1.0, "device": "none"}},
    "prepare": prepare,
    "timed": lambda work, steps, budget: note("runs", {{"seconds": [0.5] * steps}}),
}})
"""


@pytest.fixture
def make(tmp_path):
    log = tmp_path / "log"
    log.write_text("")

    def side(name):
        program = SIDE.format(log=str(log), name=name)
        return run.Side(name, "ours", [sys.executable, "-c", program], {})

    def lines():
        return log.read_text().split("\n")[:-1]

    return SimpleNamespace(side=side, lines=lines)


def options(**changes):
    given = {"device": "cpu", "limit": 60.0, "budget": 0.0, "rounds": 3, "quick": False}
    given["steps"] = None
    return SimpleNamespace(**{**given, "ends": float("inf"), "works": ["train"], **changes})


def test_every_other_round_goes_backwards_and_what_fails_is_reported(make):
    sides = [make.side(name) for name in ("ours", "broken", "peer")]
    turns = run.make_turns(sides, options())["train", "ours"]
    run.prepare_all(turns, 3)
    assert sorted(make.lines()) == ["ours prepares", "peer prepares"]
    run._time("train", turns, options())
    order = ["ours runs", "peer runs"]
    assert make.lines()[2:] == order + order[::-1] + order  # and nothing was prepared again
    ours, broken, peer = turns
    assert ours.seconds == peer.seconds == [[0.5] * run.STEPS["train"]] * 3
    assert broken.seconds == []
    assert broken.row == {"error": "ValueError: no such layer"}
    assert broken.described["parameters"] == 1


def test_an_interruption_ends_what_compiles(make):
    class Interrupted(run.Side):
        def start(self, extra=None):
            while make.lines() != ["slow compiles"]:
                time.sleep(0.05)
            raise KeyboardInterrupt

    sides = [Interrupted("first", "ours", [], {}), make.side("slow")]
    turns = run.make_turns(sides, options())["train", "ours"]
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        run.prepare_all(turns, 2)
    assert time.monotonic() - started < 60
    assert "the process ended" in turns[1].row["error"]


def test_what_is_not_compiled_in_time_is_left_out(make):
    over = options(ends=time.monotonic() - 1)
    turns = run.make_turns([make.side("ours")], over)["train", "ours"]
    run._time("train", turns, over)
    assert turns[0].row == {"error": "not begun: --total was over"}
    assert turns[0].seconds == []
    assert make.lines() == []


def test_a_pair_is_done_the_works_it_has(make):
    wanted = options(works=["train", "encode", "decode"])
    turns = run.make_turns([make.side("ours")], wanted, works=("encode", "decode"))
    assert list(turns) == [("encode", "ours"), ("decode", "ours")]
