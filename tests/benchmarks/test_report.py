import pytest

from benchmarks import report, run

OWN = {"vdm_jax float32": "vdm_jax float32", "peer eager": "vdm_jax float32"}


def test_speed_up_is_the_median_of_the_rounds():
    results = {
        "train": {
            "vdm_jax float32": [[1.0, 1.0], [2.0, 2.0], [1.0, 3.0]],
            "peer eager": [[2.0, 2.0], [6.0, 6.0], [2.0, 2.0]],
        }
    }
    summary = report.summarise(results, OWN)["train"]
    assert summary["peer eager"]["speedup"] == pytest.approx(2.0)
    assert (summary["peer eager"]["speedup_min"], summary["peer eager"]["speedup_max"]) == (1, 3)
    assert summary["vdm_jax float32"]["median_s"] == 1.5
    assert "speedup" not in summary["vdm_jax float32"]


def test_a_side_that_failed_is_said_and_compared_with_nothing():
    results = {"train": {"peer eager": [[2.0]]}}  # ours has no time
    summary = report.summarise(results, OWN)
    assert "speedup" not in summary["train"]["peer eager"]
    pair = {
        "name": "peer",
        "frames": 8,
        "size": 32,
        "batch": 4,
        "difference": "nothing",
        "sides": {"vdm_jax float32": {"error": "a | b"}},
        "works": {
            "train": {
                "vdm_jax float32": {"error": "a | b"},
                "peer eager": summary["train"]["peer eager"],
            }
        },
    }
    text = report.markdown(
        report.header() | {"device": "cpu", "rounds": 1, "pairs": [pair], "data": {"x": "1"}}
    )
    assert "| training step | vdm_jax float32 |  |  |  |  | fails: a / b |" in text
    assert "| training step | peer eager | 2.000 |" in text
    assert "| x | 1 |" in text


def test_a_busy_machine_is_refused(monkeypatch):
    monkeypatch.setattr(run.os, "getloadavg", lambda: (1.7, 1.0, 1.0))
    with pytest.raises(SystemExit, match=r"load 1\.70"):
        run.refuse_if_busy(0.5)
    assert run.refuse_if_busy(2.0) == 1.7


@pytest.mark.parametrize("flag", ["--peers=pytorch", "--works=train,walk", "--dtypes=int8"])
def test_what_is_unknown_is_told_with_what_is_known(flag, capsys):
    with pytest.raises(SystemExit):
        run.main([flag])
    assert "unknown" in capsys.readouterr().err
