"""The labels are in order, and the benchmark plants what it says."""

import json

import numpy as np

from benchmarks import curation, curation_claim
from tests.data.curation import films
from vdm_jax.evaluation import judge


def test_labels_are_in_order_and_apart():
    labels = json.loads(curation.LABELS.read_text(encoding="utf-8"))
    first, last = labels["frames"]
    cuts = labels["cuts"]
    assert cuts == sorted(set(cuts)) and first <= cuts[0] and cuts[-1] < last
    spans = sorted((one["first"], one["last"]) for one in labels["gradual"] + labels["overlays"])
    assert all(a < b for a, b in spans)
    assert all(before[1] < after[0] for before, after in zip(spans, spans[1:], strict=False))
    assert not any(a <= cut <= b for cut in cuts for a, b in spans)


def test_shots_lie_between_cuts_and_hold_no_transition():
    labels = {
        "frames": [0, 100],
        "cuts": [20, 60],
        "gradual": [{"first": 70, "last": 80}],
        "overlays": [],
    }
    assert curation._shots(labels, 100) == [(0, 20), (20, 60)]


def test_faults_are_planted():
    shot = films.scene(1, 30)
    bars = curation._letterboxed(shot)
    assert not bars[:, 0].any() and (bars[:, 20] == shot[:, 20]).all() and shot[:, 0].any()
    shaken = curation.shaken(shot, np.random.default_rng(0))
    assert shaken.shape[0] == 30 and shaken.shape[1] < shot.shape[1]
    turned = [curation._turned(shot, kind) for kind in ("still", "shake", "border", "text")]
    assert len({array[0].tobytes() for array in turned}) == 4
    lettered = curation.lettered(shot)
    assert 0.005 < (lettered != shot).any(-1).mean() < 0.3


def test_rates_are_counted(capsys):
    curation._print_rates("cuts", 9, 10, 9, 12)
    assert capsys.readouterr().out == (
        "cuts: precision 0.900 (9 of 10), recall 0.750 (9 of 12), F1 0.818\n"
    )
    assert curation._overlaps((5, 5), [(5, 9)]) and not curation._overlaps((4, 4), [(5, 9)])


def test_clean_films_of_the_claim_show_their_captions():
    rng = np.random.default_rng(0)
    captions = [curation_claim._caption(rng, "held_out") for _ in range(4)]
    videos = [curation_claim._shot(caption, rng)[:24:3] for caption in captions]
    means = np.stack(videos).reshape(4, 8, 16, 8, 16, 8, 3).mean((3, 5)).round().astype(np.uint8)
    assert judge.score(means, captions)["all"] == 1
    assert (np.stack(videos)[:, 0] > 20).any(-1).all()  # no black borders
