"""`vdm data elo`: cuts, training that is not repeated, votes, and what it says."""

import json
import re

import numpy as np
import pytest

from tests import tiny
from tests.data.curation import films
from vdm_jax.cli import curate, elo, train
from vdm_jax.data import video_io
from vdm_jax.data.curation import engine
from vdm_jax.data.source import DataError

_COLOURS = ("red", "blue", "green", "white")
_IGNORED = ("black", "border", "motion", "duplicate")  # dark textures that pan


@pytest.fixture(scope="module")
def curated(tmp_path_factory):
    """Four films, the clips of which differ in brightness, and a still that is dropped."""
    root = tmp_path_factory.mktemp("elo")
    for number, colour in enumerate(_COLOURS):
        scene = films.scene(number, 60, pan=(0, 1)) // (4 - number)
        films.write(root / "videos" / f"{colour}.mp4", scene)
        (root / "videos" / f"{colour}.txt").write_text(f"a {colour} square\n")
    films.write(root / "videos" / "still.mp4", films.scene(9, 60, pan=(0, 0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "in_pool", lambda workers: films.serially)
        out = root / "out"
        flags = ("--measure_only", *(f"--config.keep.{name}=" for name in _IGNORED))
        assert curate.main([f"--videos={root / 'videos'}", f"--out={out}", *flags]) == 0
    return out, tiny.write_config(root, steps=2)


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setattr(engine, "in_pool", lambda workers: films.serially)


def run(curated, *flags):
    out, config = curated
    own = ("--num_samples=4", "--config.data.image_size=16")
    return elo.main([f"--out={out}", f"--config={config}", *own, *flags])


CUTS = ("--score=brightness", "--quantiles=0.5,0")


def test_cuts_are_trained_once_and_ranked(curated, capsys, monkeypatch):
    out, _ = curated
    assert run(curated, *CUTS, "--votes=warp") == 0
    printed = capsys.readouterr().out
    assert "q0: 4 clips or films, 2 updates" in printed
    assert "q0.5: 2 clips or films, 2 updates" in printed
    assert "4 votes (warp)" in printed and re.search(r"best: q0(\.5)?; vdm data curate", printed)
    workdir = out / "elo" / "brightness"
    first = json.loads((workdir / "elo.json").read_text())
    rows = {row["name"]: row for row in first["players"]}
    assert rows["q0"]["flag"] == "--config.keep.brightness="
    bound = re.fullmatch(r"--config.keep.brightness=(.*):", rows["q0.5"]["flag"])[1]
    assert 0 < float(bound) < 1 and rows["q0"]["value"] + rows["q0.5"]["value"] == pytest.approx(
        2000
    )

    monkeypatch.setattr(train, "fit", lambda *_: pytest.fail("trained again"))
    lines = [
        json.dumps({"first": "q0.5", "second": "q0", "sample": sample, "share": 1})
        for sample in range(4)
    ]
    (out / "votes.jsonl").write_text("\n".join(lines))
    assert run(curated, *CUTS, f"--votes={out / 'votes.jsonl'}") == 0
    printed = capsys.readouterr().out
    assert f"best: q0.5; vdm data curate --config.keep.brightness={bound}:" in printed
    second = json.loads((workdir / "elo.json").read_text())["players"]
    assert second[0]["name"] == "q0.5" and second[0]["share"] == 1

    assert run(curated, *CUTS) == 0  # without --reference a person votes
    assert "votes.html: open it, vote" in capsys.readouterr().out
    page = (workdir / "votes.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page)[1])
    assert sorted(map(sorted, data["pairs"])) and len(data["pairs"]) == 4
    assert data["players"] == ["q0", "q0.5"] and len(data["clips"][1]) == 4

    (workdir / "q0" / "player.json").write_text('{"identity": "another"}')
    with pytest.raises(DataError, match="q0: its model was trained on other clips; delete"):
        run(curated, *CUTS, "--votes=warp")


def test_the_whole_curation_is_compared_with_none(curated, capsys, monkeypatch, tmp_path):
    """Stands in for training; samples are the first clips of each data set."""
    seen = {}

    def fit(config, workdir):
        seen[workdir.split("/")[-2]] = config
        return None, type("Result", (), {"reason": "steps"})

    monkeypatch.setattr(train, "fit", fit)
    sampled = np.zeros((4, 4, 16, 16, 3), np.uint8)
    monkeypatch.setattr("vdm_jax.cli.elo_players._sampled", lambda *_: sampled)
    assert run(curated, "--curated", "--votes=warp", f"--workdir={tmp_path}") == 0
    assert "note: its interval overlaps" in capsys.readouterr().out
    assert {name: config.data.name for name, config in seen.items()} == {
        "raw": "video_folder",
        "half": "video_folder",
        "curated": "video_shards",
    }
    assert len({config.text.vocabulary for config in seen.values()}) == 1
    half = tmp_path / "half" / "films"
    assert len(list(half.glob("*.mp4"))) == 2
    assert all(video_io.read_video(path)[0].any() for path in half.glob("*.mp4"))


def test_a_training_that_is_stopped_goes_on_later(curated, capsys, monkeypatch, tmp_path):
    stopped = type("Result", (), {"reason": "SIGTERM"})
    monkeypatch.setattr(train, "fit", lambda *_: (None, stopped))
    assert run(curated, *CUTS, "--votes=warp", f"--workdir={tmp_path}") == 75
    assert "the same command goes on" in capsys.readouterr().out


@pytest.mark.parametrize(
    "flags,message",
    [
        (("--score=brightness", "--curated"), "either --score"),
        ((), "either --score"),
        ((*CUTS, "--votes=features"), "needs --reference"),
        (("--score=brightness", "--quantiles=0,1"), "from 0 to below 1"),
        (("--score=brightness", "--quantiles=0.5"), "two or more different"),
    ],
)
def test_flags_that_do_not_fit_are_named(curated, capsys, flags, message):
    with pytest.raises(SystemExit):
        run(curated, *flags)
    assert message in capsys.readouterr().err


def test_unknown_scores_equal_cuts_and_encoders_are_named(curated):
    with pytest.raises(
        DataError, match="--score=beauty: the kept clips have black, border, bright"
    ):
        run(curated, "--score=beauty")
    with pytest.raises(DataError, match="q0 and q0.1 keep the same clips"):
        run(curated, "--score=black", "--quantiles=0,0.1")
    with pytest.raises(ValueError, match="trains with words or none"):
        run(curated, *CUTS, "--config.text.encoder=minilm")
