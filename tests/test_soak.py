"""A run that is killed twice ends in the same bits as one left in peace."""

import pytest

from tests import soak


@pytest.mark.slow
def test_a_run_that_is_killed_is_bit_identical(tmp_path):
    lines = []
    assert soak.soak(tmp_path, rounds=2, steps=30, seed=1, report=lines.append) == []
    assert [line.split()[0] for line in lines] == ["left", "round", "round", "the"]
    assert lines[0].startswith("left in peace: 30 updates") and lines[-1].endswith(" 30 updates")


def test_a_difference_of_one_bit_is_seen(tmp_path):
    zero, minus_zero = soak.np.zeros(3), -soak.np.zeros(3)
    assert soak.same(zero, soak.np.zeros(3)) and not soak.same(zero, minus_zero)
    assert not soak.same(zero, soak.np.zeros(3, soak.np.float32))


def test_too_few_steps_are_refused(capsys):
    with pytest.raises(SystemExit) as error:
        soak.main(["--rounds=3", "--steps=10"])
    assert error.value.code == 2 and "--steps must be at least" in capsys.readouterr().err
