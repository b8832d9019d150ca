import io
import sys

import pytest

from vdm_jax.cli import progress


@pytest.fixture
def clock(monkeypatch):
    """Every item takes 20 seconds."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])

    def items(count):
        for item in range(count):
            now[0] += 20.0
            yield item

    return items


def test_without_a_terminal_a_line_comes_now_and_then(clock, capsys):
    assert list(progress.track(clock(5), "sampling", 5)) == [0, 1, 2, 3, 4]
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "sampling: 2 of 5, 20 s each, 60 s left",
        "sampling: 4 of 5, 20 s each, 20 s left",
    ]


def test_quiet_shows_nothing(clock, capsys):
    assert list(progress.track(clock(5), "sampling", 5, quiet=True)) == [0, 1, 2, 3, 4]
    assert capsys.readouterr().out == ""


def test_a_terminal_has_a_bar(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setenv("TERM", "xterm")
    assert list(progress.track([1, 2], "sampling")) == [1, 2]
    assert "\x1b" in sys.stdout.getvalue()  # what moves a cursor
