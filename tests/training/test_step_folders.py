"""When a step counts: processes that are killed between any two changes of its directory."""

import os
import shutil

import pytest

from vdm_jax.training import step_folders

CHANGES = ("mkdir", "unlink", "rmdir", "open")


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
def killed_before(monkeypatch):
    """A function (n) -> None: from now on the change n of the file system, from 0, does not happen,
    and none after it. Reading is no change."""

    def begin(number):
        left = [number]

        def stopping(change):
            def call(*arguments, **options):
                writes = change is not originals["open"] or arguments[1] & os.O_CREAT
                if writes:
                    if not left[0]:
                        raise Killed
                    left[0] -= 1
                return change(*arguments, **options)

            return call

        originals = {name: getattr(os, name) for name in CHANGES}
        for name, change in originals.items():
            monkeypatch.setattr(os, name, stopping(change))

    return begin


def write(step):
    """A step with files in directories, as they are when they are on the disk."""
    for name in ("config", "state/d"):
        (step / name).mkdir(parents=True, exist_ok=True)
        (step / name / "metadata").write_text("{}")


@pytest.mark.parametrize("number", range(16))
def test_a_process_killed_while_deleting_leaves_no_step(number, tmp_path, killed_before):
    step = tmp_path / "3"
    write(step)
    with pytest.raises((Killed, SystemExit)):
        killed_before(number)
        step_folders.delete(step)
        raise SystemExit  # it was through
    assert step_folders.is_complete(step) == (number == 0)
    assert step_folders.complete_steps(tmp_path) == [3] * (number == 0)


@pytest.mark.parametrize("number", range(8))
def test_a_process_killed_while_beginning_leaves_no_step(number, tmp_path, killed_before):
    step = tmp_path / "3"
    with pytest.raises((Killed, SystemExit)):
        killed_before(number)
        step_folders.make(step)
        raise SystemExit
    assert not step_folders.is_complete(step)


def test_what_was_not_complete_is_cleared(tmp_path):
    for name, mark in (("1", ""), ("2", "UNFINISHED"), ("3", "DELETED"), ("damaged_4", "")):
        write(tmp_path / name)
        if mark:
            (tmp_path / name / mark).touch()
    assert step_folders.complete_steps(tmp_path) == [1]
    assert step_folders.clear(tmp_path) == [(tmp_path / "2", True), (tmp_path / "3", False)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "damaged_4"]


def test_a_step_becomes_complete_and_is_made_again(tmp_path):
    step = tmp_path / "5"
    step_folders.make(step)
    write(step)
    assert not step_folders.is_complete(step)
    step_folders.complete(step)
    assert step_folders.complete_steps(tmp_path) == [5]
    step_folders.make(step)
    assert not step_folders.is_complete(step) and not (step / "config").exists()


def test_a_step_is_put_aside_under_a_new_name_each_time(tmp_path):
    for name in ("damaged_5", "damaged_5_2"):
        write(tmp_path / "5")
        assert step_folders.put_aside(tmp_path / "5") == name
        assert not (tmp_path / "5").exists()
        assert (tmp_path / name / "state" / "d" / "metadata").read_text() == "{}"
    shutil.rmtree(tmp_path / "damaged_5")
