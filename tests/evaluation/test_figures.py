"""Every metric and every field of an evaluation reaches the figures: what a figure consists of, and
what it depends on. That its value is right is tested in the metric's own file."""

import dataclasses

import numpy as np
import pytest

from tests.evaluation.test_action_text import words
from tests.evaluation.test_suite import Projection
from vdm_jax.evaluation import (
    action_text,
    clips,
    comparison,
    distances,
    fidelity,
    frechet,
    judge,
    kinetics,
    suite,
)
from vdm_jax.evaluation.prediction import Prediction
from vdm_jax.evaluation.protocol import Features

LOGITS, POOLED = "projection, logits", "projection, pooled features"
HALVES = {"estimate": "corrected for the bias of few clips, by halves"}
# For each metric: its needs (see below), better, its layer, further figures, options.
METRICS = {
    "fvd": ("rn", "lower", LOGITS, ("fvd_uncorrected", "fvd_infinity"), HALVES),
    "ffd": (
        "rn",
        "lower",
        "projection, logits of still frames",
        ("ffd_uncorrected", "ffd_infinity"),
        HALVES,
    ),
    "kvd": ("rn", "lower", LOGITS, (), {"block_size": None}),
    "precision": ("rn", "higher", POOLED, (), {"k": 3}),
    "recall": ("rn", "higher", POOLED, (), {"k": 3}),
    "is": ("n", "higher", LOGITS, ("is_deviation",), {"splits": 10}),
    "accuracy": ("n", "higher", LOGITS, ("accuracy_top5",), {}),
    "action_text": (
        "ns",
        "higher",
        LOGITS,
        ("action_text_others", "action_text_retrieval", "action_text_chance"),
        {"text": "words", "captions": 4},
    ),
    "consistency": (
        "n",
        "higher",
        f"{POOLED} of still frames",
        ("consistency_strangers",),
        {"pairs of frames a clip": 1},
    ),
    "psnr": ("rp", "higher", None, (), {"equal_frames": "as one value off by one"}),
    "ssim": ("rp", "higher", None, (), {}),
    "warp": ("", "lower", None, ("warp_visible",), {"flow": "dis"}),
    "judge": ("", "higher", None, tuple(f"judge_{name}" for name in judge.FACTORS), {}),
}
SENTENCES = action_text.Sentences(encode=words, protocol={"text": "words"})
CLASSES = [kinetics.class_names()[number] for number in (10, 20, 30, 40)]


class Wide(Projection):
    """With as many logits as classes."""

    def __call__(self, videos):
        logits, features = super().__call__(videos)
        return np.pad(logits, [(0, 0), (0, 388)], constant_values=-9.0), features


@pytest.fixture(scope="module")
def sides():
    """Samples that differ a little from the references."""
    found = clips.from_rendered("moving_shapes", "16x16x8", "held_out", 40)
    ours = found.videos[:20] // 2 + np.arange(20, dtype=np.uint8)[:, None, None, None, None]
    theirs = dataclasses.replace(found, videos=found.videos[20:], captions=found.captions[20:])
    return dataclasses.replace(found, videos=ours, captions=found.captions[:20]), theirs


def make(sides, metric, **fields):
    ours, theirs = sides
    if metric in ("accuracy", "action_text"):
        ours = dataclasses.replace(ours, captions=CLASSES * 5)
    network = Wide() if metric in ("is", "accuracy", "action_text") else Projection()
    settings = {"samples": ours, "reference": theirs, "network": network, "replicates": 20}
    return suite.Evaluation(**{**settings, "sentences": SENTENCES, **fields})


def figure(sides, metric, **fields):
    if metric == "warp":
        pytest.importorskip("cv2")
    return suite.measure(make(sides, metric, **fields), [metric])[0]


def test_the_metrics_are_those_of_the_table():
    found = {
        name: (
            "".join(
                flag[0]
                for flag in ("reference", "network", "sentences", "paired")
                if getattr(metric, flag)
            ),
            metric.better,
        )
        for name, metric in suite.METRICS.items()
    }
    assert found == {name: row[:2] for name, row in METRICS.items()}
    titles = [metric.title for metric in suite.METRICS.values()]
    assert all(titles) and len(set(titles)) == len(titles)


@pytest.mark.parametrize("metric", METRICS)
def test_what_a_figure_consists_of(sides, metric):
    _, _, layer, extra, options = METRICS[metric]
    found = figure(sides, metric, stride=3, seed=5, subject={"model": "m"}, remarks=("so",))
    protocol = found.protocol
    assert protocol.metric == metric
    assert tuple(found.extra) == extra and protocol.options == options
    assert (protocol.stride, protocol.seed, found.n, protocol.samples) == (3, 5, 20, 20)
    assert (protocol.references, protocol.frames, protocol.size) == (20, 8, (16, 16))
    assert (protocol.dataset, protocol.split) == ("moving_shapes/16x16x8", "held_out")
    assert protocol.crop == "centre square"
    if layer is None:
        assert protocol.resize == "none" and protocol.features is None
    else:
        assert protocol.resize == "none; none"
        seen = Features(name=layer, weights="seed 0", padding="none", precision="float32")
        assert protocol.features == seen
    assert found.subject == {"model": "m"} and found.note.endswith("so")
    has_interval = metric not in ("kvd", "precision", "recall", "is")
    assert (found.level == 0.95) == has_interval
    assert (found.standard_error is not None) == (has_interval or metric == "kvd")


# A field, two values, and the metrics whose figures depend on it.
RESAMPLED = ("fvd", "ffd", "consistency", "psnr", "ssim", "warp")
FIELDS = [
    ("seed", 0, 1, (*RESAMPLED, "is")),
    ("replicates", 20, 0, ("fvd", "ffd", "consistency", "psnr", "ssim", "warp", "action_text")),
    ("replicates", 20, 30, (*RESAMPLED, "action_text")),
    ("level", 0.95, 0.5, (*RESAMPLED, "action_text", "accuracy", "judge")),
]


@pytest.mark.parametrize(
    ("field", "one", "other", "metric"),
    [(field, one, other, m) for field, one, other, metrics in FIELDS for m in metrics],
)
def test_a_field_of_an_evaluation_changes_the_figures(sides, field, one, other, metric):
    def numbers(value):
        found = figure(sides, metric, **{field: value})
        return [found.value, found.low, found.high, found.standard_error, *found.extra.values()]

    assert numbers(one) == numbers(one)
    assert numbers(one) != numbers(other)


@pytest.mark.parametrize("metric", ["fvd", "psnr", "judge", "accuracy"])
def test_an_interval_is_of_its_level(sides, metric):
    wide, narrow = (figure(sides, metric, level=level) for level in (0.99, 0.5))
    assert (wide.level, narrow.level) == (0.99, 0.5)
    assert wide.low < narrow.low <= narrow.high <= wide.high


def test_figures_are_those_of_the_metrics(sides):
    """Of the right clips, in the right order, with the right layer of the network."""
    ours, theirs = (Projection()(side.videos) for side in sides)
    assert figure(sides, "kvd").value == distances.kernel_distance(ours[0], theirs[0], seed=0)[0]
    fvd = figure(sides, "fvd", seed=4).extra
    assert fvd["fvd_uncorrected"] == frechet.frechet_from_features(ours[0], theirs[0])
    limit = frechet.frechet_infinity(ours[0], theirs[0], seed=4)
    assert fvd["fvd_infinity"] == limit.value
    shares = distances.precision_recall(ours[1], theirs[1], k=3)
    assert [figure(sides, name).value for name in ("precision", "recall")] == list(shares)
    logits = Wide()(sides[0].videos)[0]
    score = distances.inception_score(logits, splits=10, seed=2)
    inception = figure(sides, "is", seed=2)
    assert (inception.value, inception.extra["is_deviation"]) == (score.value, score.deviation)
    few = dataclasses.replace(sides[0], videos=sides[0].videos[:4])
    assert figure((few, sides[1]), "is").protocol.options == {"splits": 4}
    psnr = fidelity.psnr(sides[0].videos, sides[1].videos)
    assert figure(sides, "psnr").value == pytest.approx(psnr.mean)


def test_stills_and_pairs_of_frames_are_drawn_by_the_seed(sides):
    for metric in ("ffd", "consistency"):
        values = {figure(sides, metric, seed=seed, replicates=0).value for seed in range(3)}
        assert len(values) == 3


def test_the_kernel_distance_is_of_blocks_where_clips_are_enough(sides):
    many = [
        dataclasses.replace(side, videos=np.repeat(side.videos, 13, axis=0)[:count])
        for side, count in zip(sides, (256, 260), strict=True)
    ]
    found = figure(many, "kvd")
    assert found.protocol.options == {"block_size": 64} and found.standard_error > 0
    assert found.value != figure(many, "kvd", seed=1).value
    few = [dataclasses.replace(side, videos=side.videos[:255]) for side in many]
    assert figure(few, "kvd").protocol.options == {"block_size": None}


def test_what_is_known_of_the_samples_is_in_the_figures(sides):
    known = Prediction(frames=3, method="replacement", source="there")
    found = figure(sides, "fvd", prediction=known)
    options = known.options | HALVES
    assert found.protocol.options == options | {"over": "all frames"} and found.protocol.frames == 8
    part = dataclasses.replace(known, over="predicted")
    cut = [dataclasses.replace(side, videos=side.videos[:, 3:]) for side in sides]
    found = figure(sides, "fvd", prediction=part)
    assert found.protocol.frames == 5
    assert found.protocol.options == options | {"over": "predicted frames"}
    alone = figure(cut, "fvd", prediction=dataclasses.replace(known, frames=1))
    assert found.extra["fvd_uncorrected"] == alone.extra["fvd_uncorrected"]
    # What is compared clip by clip is compared where it was predicted.
    pair = figure(sides, "psnr", prediction=known)
    assert pair.value == figure(cut, "psnr").value
    assert pair.protocol.options["over"] == "predicted frames"
    for frames, message in ((8, "known frames 8: clips of 8 frames leave nothing"), (9, "known")):
        with pytest.raises(ValueError, match=message):
            make(sides, "fvd", prediction=dataclasses.replace(known, frames=frames))
    elsewhere = dataclasses.replace(known, of_references=False)
    with pytest.raises(ValueError, match=r"psnr compares clip by clip: .*omit --known_from"):
        figure(sides, "psnr", prediction=elsewhere)
    with pytest.raises(ValueError, match="kvd: its estimate is for independent clips"):
        figure(sides, "kvd", prediction=known)
    assert figure(sides, "kvd", prediction=elsewhere).value is not None


def test_samples_without_references_and_other_filters(sides):
    ours, theirs = sides
    alone = figure((ours, None), "is").protocol
    assert (alone.dataset, alone.split, alone.references) == ("none", "none", None)
    enlarged = dataclasses.replace(ours, description=ours.description | {"resize": "bicubic"})
    assert figure((enlarged, theirs), "psnr").protocol.resize == "none; of samples bicubic"
    assert figure((ours, enlarged), "psnr").protocol.resize == "bicubic"
    assert figure((enlarged, enlarged), "psnr").protocol.resize == "bicubic"
    assert figure((enlarged, None), "judge").protocol.resize == "bicubic"
    timed = [dataclasses.replace(side, fps=(8.0, 8.0)) for side in sides]
    assert figure(timed, "psnr").protocol.options["fps"] == "8"
    assert figure((timed[0], None), "judge").protocol.options["fps"] == "8"


def test_other_samples_are_held_against_the_same_outputs_of_the_references(sides):
    class Counted(Projection):
        calls = 0

        def __call__(self, videos):
            Counted.calls += 1
            return super().__call__(videos)

    first = make(sides, "fvd", network=Counted())
    second = first.of(sides[1], {"model": "b"})
    third = second.of(sides[0], {"model": "c"})
    values = [suite.measure(this, ["fvd"])[0] for this in (first, second, third)]
    assert Counted.calls == 4  # the references once
    assert [value.subject for value in values] == [{}, {"model": "b"}, {"model": "c"}]
    assert values[0].value == values[2].value != values[1].value


def test_the_least_clips_of_which_there_is_a_figure(sides):
    def cut(count, frames=8):
        return [
            dataclasses.replace(side, videos=side.videos[:count, :frames], captions=[])
            for side in sides
        ]

    assert figure(cut(20, frames=2), "consistency").value > 0
    with pytest.raises(ValueError, match="clips of 1 frame have no consecutive ones"):
        figure(cut(20, frames=1), "consistency")
    assert figure(cut(1), "consistency").extra == {}
    # Four clips are enough to correct a distance, sixteen for its limit, two for an interval.
    assert figure(cut(3), "fvd").low is None and figure(cut(4), "fvd").low is not None
    names = [set(figure(cut(count), "fvd").extra) for count in (15, 16)]
    assert names == [{"fvd_uncorrected"}, {"fvd_uncorrected", "fvd_infinity"}]
    assert figure(cut(1), "psnr").low is None and figure(cut(2), "psnr").low is not None
    # Five clips a feature are sound.
    many = [dataclasses.replace(s, videos=np.tile(s.videos, (3, 1, 1, 1, 1))) for s in sides]
    notes = [
        figure([dataclasses.replace(s, videos=s.videos[:n]) for s in many], "fvd").note
        for n in (59, 60)
    ]
    assert "59 clips for 12 features are few" in notes[0] and not notes[1]


@pytest.mark.parametrize("right", [1, 3])
def test_a_share_lies_in_its_interval(sides, right):
    """Of one group of four samples, the share that is right is rounded to none or all."""
    ours = dataclasses.replace(sides[0], videos=sides[0].videos[:4])
    prediction = Prediction(frames=1, method="replacement", each=4)
    evaluation = make((ours, None), "judge", prediction=prediction, level=0.1)
    found = evaluation.share("judge", np.arange(4) < right)
    assert found.low <= found.value == right / 4 <= found.high


def test_samples_that_continue_one_clip_are_one(sides):
    ours, theirs = sides
    first = dataclasses.replace(theirs, videos=theirs.videos[:5], captions=[])
    prediction = Prediction(frames=1, method="replacement", each=4)
    found = figure((ours, first), "psnr", prediction=prediction)
    pairs = fidelity.psnr(ours.videos[:, 1:], np.repeat(first.videos[:, 1:], 4, axis=0))
    assert found.value == pytest.approx(pairs.mean) and found.n == 20
    alone = figure((ours, theirs), "psnr")
    assert found.standard_error != alone.standard_error
    with pytest.raises(ValueError, match="5 groups and a reference of 20"):
        figure(sides, "psnr", prediction=prediction)


def test_clips_of_other_names_are_no_pairs(sides):
    names = [str(number) for number in range(20)]
    ours, theirs = (dataclasses.replace(side, names=names) for side in sides)
    assert figure((ours, theirs), "psnr").protocol.options["pairs"] == "by name"
    assert "pairs" not in figure((ours, sides[1]), "psnr").protocol.options
    with pytest.raises(ValueError, match="psnr compares clip by clip: the clips' names differ"):
        figure((ours, dataclasses.replace(theirs, names=names[::-1])), "psnr")


def test_what_was_left_out_is_in_the_note(sides):
    ours, theirs = sides
    ours = dataclasses.replace(ours, left_out={"a": "damaged"})
    theirs = dataclasses.replace(theirs, left_out={"b": "short"})
    note = figure((ours, theirs), "psnr", remarks=("so",)).note
    assert note == "so; left out of the samples: a (damaged); left out of the references: b (short)"


def test_processes_that_measure_together_share_the_clips(sides, monkeypatch):
    shared = []

    def by_process(function, *arrays):
        shared.append(len(arrays[0]))
        return function(*arrays)

    monkeypatch.setattr(comparison.shares, "by_process", by_process)
    alone = figure(sides, "fvd")
    assert not shared
    assert figure(sides, "fvd", together=True).value == alone.value and shared == [20, 20]
    assert figure(sides, "psnr", together=True).n == 20 and len(shared) == 3


def test_defaults():
    found = {  # where both have a field, the metric's, which is whether it needs it
        field.name: field.default
        for part in (suite.Evaluation, suite.Metric)
        for field in dataclasses.fields(part)
        if field.default is not dataclasses.MISSING
    }
    assert found == {
        **dict.fromkeys(("origin", "prediction")),
        "stride": 1,
        "seed": 0,
        "replicates": 1000,
        "level": 0.95,
        "together": False,
        "remarks": (),
        "reference": True,
        "network": True,
        "sentences": False,
        "paired": False,
        "better": "lower",
    }
    bare = suite.Evaluation(samples=None)
    assert (bare.reference, bare.network, bare.sentences, bare.subject) == (None, None, None, {})
    constants = (suite.KERNEL_BLOCK, suite.SPLITS, suite.NEIGHBOURS, suite.HALVES, suite.SOUND)
    assert constants == (64, 10, 3, 400, 5) and suite.TOP == 5
