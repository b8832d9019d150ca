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


def test_a_listener_is_called_in_the_place_of_lines(capsys):
    heard = []
    with progress.heard(lambda *of: heard.append(of)):
        assert list(progress.track("ab", "sampling")) == ["a", "b"]
        with progress.report("extend") as report:
            report(1, 3)
        list(progress.track("ab", "quiet", quiet=True))
    assert heard == [("sampling", 0, 2), ("sampling", 1, 2), ("sampling", 2, 2), ("extend", 1, 3)]
    assert capsys.readouterr().out == ""
    list(progress.track("ab", "sampling"))
    assert len(heard) == 4  # nobody listens now


def test_an_error_of_the_listener_ends_the_work():
    def stop(name, done, total):
        if done:
            raise RuntimeError("enough")

    done = []
    with pytest.raises(RuntimeError, match="enough"), progress.heard(stop):
        for item in progress.track("abc", "sampling"):
            done.append(item)
    assert done == ["a"]
