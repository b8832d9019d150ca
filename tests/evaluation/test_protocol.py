"""Figures keep what they depend on, and are not compared without it."""

import dataclasses
import json

import numpy as np
import pytest

from vdm_jax.evaluation.protocol import (
    Features,
    Protocol,
    Result,
    compare,
    differences,
    load,
    save,
    told,
)

FVD = Protocol(
    metric="fvd",
    dataset="ucf101",
    split="test",
    samples=2048,
    references=2048,
    frames=16,
    stride=1,
    size=(64, 64),
    crop="center",
    resize="bilinear antialias",
    features=Features(name="i3d logits", weights="sha256:0123", precision="float32"),
    seed=0,
    options={"points": 15, "fit": {"smallest": [1024, 2048]}},
)
PSNR = dataclasses.replace(FVD, metric="psnr", features=None, options={})


def result(value, protocol=FVD, model="base", **kwargs):
    kwargs = {"n": 2048, "low": value - 10, "high": value + 10, "level": 0.95, **kwargs}
    subject = {"model": model, "sampler": "ddim", "steps": 50}
    return Result(protocol=protocol, value=value, subject=subject, **kwargs)


def test_everything_comes_back_from_json(tmp_path):
    results = [
        result(100.0, standard_error=3.0, extra={"fvd_infinity": 80.5}),
        result(float("inf"), PSNR, low=None, high=None, level=None, extra={"worst": float("-inf")}),
    ]
    for made in results:
        text = json.dumps(made.to_dict(), allow_nan=False)
        assert Result.from_dict(json.loads(text)) == made
    assert Protocol.from_dict(json.loads(json.dumps(FVD.to_dict()))) == FVD
    save(tmp_path / "results.json", results)
    assert load(tmp_path / "results.json") == results
    # A field a line: people read the file, and compare versions of it.
    assert '\n  "value": 100.0,\n' in (tmp_path / "results.json").read_text()
    nan = Result.from_dict(result(1.0, extra={"x": float("nan")}).to_dict())
    assert np.isnan(nan.extra["x"])


def test_the_features_are_beside_the_others_in_files():
    """As in files that were written before these fields were a value of their own."""
    names = list(FVD.to_dict())
    assert names[9:14] == ["resize", "padding", "features", "weights", "precision"]
    assert len(names) == 17
    fields = FVD.to_dict()
    assert fields["features"] == "i3d logits" and fields["weights"] == "sha256:0123"
    assert fields["padding"] is None and PSNR.to_dict()["weights"] is None
    assert (
        "size [64, 64], crop center, resize bilinear antialias, features i3d logits, weights"
        in (told(FVD))
    )
    with pytest.raises(ValueError, match="name None: must be str"):
        Protocol.from_dict({**PSNR.to_dict(), "weights": "sha256:0123"})


def test_the_version_is_the_librarys():
    import vdm_jax

    assert FVD.version == vdm_jax.__version__


def test_values_are_taken_for_what_they_are():
    made = dataclasses.replace(
        FVD,
        samples=np.int64(2048),
        size=[64, 64],
        options={"points": 15, "fit": {"smallest": (1024, 2048)}},
    )
    assert made == FVD and not differences(made, FVD) and type(made.samples) is int
    assert type(result(np.float32(1)).value) is float


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"samples": 0}, "samples 0: must be 1 or more"),
        ({"references": -1}, "references -1"),
        ({"samples": None}, "samples None: must be int"),
        ({"stride": 1.5}, "stride 1.5: must be int"),
        ({"seed": True}, "seed True"),
        ({"size": 64}, "size 64"),
        ({"size": (64, 64, 3)}, "size"),
        ({"size": (64, 0)}, "size"),
        ({"dataset": 101}, "dataset 101: must be str"),
        ({"features": "i3d logits"}, "features 'i3d logits': must be .*Features"),
        ({"crop": 3}, r"crop 3: must be str \| None"),
        ({"options": {"x": np.zeros(3)}}, "options"),
        ({"options": {"x": float("nan")}}, "options"),
    ],
)
def test_bad_fields_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(FVD, **change)


def test_bad_results_are_named():
    with pytest.raises(ValueError, match="low, high and level .*None.*: must all be given"):
        result(1.0, high=None)
    with pytest.raises(ValueError, match="must not be above"):
        result(1.0, low=2.0, high=1.0)
    for value in ("nearly 1", "1.0"):
        with pytest.raises(ValueError, match=f"value '{value}': must be float"):
            Result.from_dict({**result(1.0).to_dict(), "value": value})
    with pytest.raises(ValueError, match="protocol"):
        Result(protocol="fvd", subject={}, value=1.0, n=1)


def test_unknown_and_missing_fields_are_named():
    fields = FVD.to_dict()
    with pytest.raises(ValueError, match="Protocol: unknown fields colour"):
        Protocol.from_dict({**fields, "colour": "red"})
    del fields["version"], fields["stride"]
    with pytest.raises(ValueError, match="Protocol: missing fields stride, version"):
        Protocol.from_dict(fields)
    with pytest.raises(ValueError, match="Protocol: missing fields stride"):
        Result.from_dict({**result(1.0).to_dict(), "protocol": fields})


@pytest.mark.parametrize("field", FVD.to_dict())
def test_every_field_makes_a_difference(field):
    fields = FVD.to_dict()
    value = fields[field]
    other = {
        "size": (64, 32),
        "options": {**FVD.options, "points": 16},
        "padding": "repeat last",
    }.get(field, value + 1 if isinstance(value, int) else f"{value}2")
    changed = Protocol.from_dict({**fields, field: other})
    name = "options.points" if field == "options" else field
    values = (15, 16) if field == "options" else (FVD.to_dict()[field], changed.to_dict()[field])
    assert differences(FVD, changed) == {name: values}
    if field != "metric":
        with pytest.raises(ValueError, match=f"fvd is not comparable: {name} ") as error:
            compare([result(1.0)], [result(2.0, changed)])
        assert all(repr(v) in str(error.value) for v in values)


def test_options_that_one_side_lacks_differ():
    less = dataclasses.replace(FVD, options={"points": 15})
    assert list(differences(FVD, less)) == ["options.fit"]
    assert differences(less, FVD)["options.fit"][0] == "(missing)"
    assert differences(FVD, FVD) == {}


def test_the_table_of_two_models():
    a = [
        result(100.0, extra={"fvd_infinity": 80.0, "one_sided": 1.0}),
        result(30.0, PSNR, low=None, high=None, level=None),
    ]
    b = [
        result(31.5, PSNR, "student", low=None, high=None, level=None, standard_error=0.25),
        result(115.0, model="student", extra={"fvd_infinity": 90.0, "other_sided": 1.0}),
    ]
    assert compare(a, b).splitlines() == [
        "- base: model base, sampler ddim, steps 50",
        "- student: model student, sampler ddim, steps 50",
        "",
        "| metric | base | student | difference | intervals |",
        "|---|---:|---:|---:|---|",
        "| fvd | 100 [90, 110] | 115 [105, 125] | +15 | overlap |",
        "| fvd: fvd_infinity | 80 | 90 | +10 | |",
        "| psnr | 30 | 31.5 ± 0.25 | +1.5 |  |",
    ]


def test_bars_in_names_do_not_end_a_cell():
    table = compare([result(1.0, model="a|b")], [result(2.0, model="c")])
    assert "| metric | a\\|b | c | difference | intervals |" in table.splitlines()


@pytest.mark.parametrize(("other", "said"), [(79.9, "apart"), (80.1, "overlap"), (120.1, "apart")])
def test_intervals_overlap_or_not(other, said):
    table = compare([result(100.0)], [result(other, model="student")])
    assert table.splitlines()[-1].endswith(f"| {said} |")


def test_one_metric_by_several_protocols_is_told_apart():
    longer = dataclasses.replace(FVD, frames=128)
    table = compare([result(1.0), result(2.0, longer)], [result(3.0, longer), result(4.0)])
    assert "| fvd (frames 16) | 1 [-9, 11] | 4 [-6, 14] | +3 | overlap |" in table
    assert "| fvd (frames 128) | 2 [-8, 12] | 3 [-7, 13] | +1 | overlap |" in table
    assert "| metric | a | b |" in table  # models of one name
    # The nearest of several is named in the refusal.
    with pytest.raises(ValueError, match="fvd is not comparable: seed 0 and 7$"):
        far = dataclasses.replace(FVD, seed=7, frames=32, stride=4)
        compare([result(1.0)], [result(1.0, far), result(1.0, dataclasses.replace(FVD, seed=7))])


def test_what_is_no_protocol_must_agree_too():
    with pytest.raises(ValueError, match="n 2048 and 2000"):
        compare([result(1.0)], [result(1.0, n=2000)])
    with pytest.raises(ValueError, match=r"level 0.95 and 0.9"):
        compare([result(1.0)], [result(1.0, level=0.9)])
    with pytest.raises(ValueError, match=r"one side only: psnr \(a\)"):
        compare([result(1.0), result(1.0, PSNR)], [result(1.0)])
    with pytest.raises(ValueError, match=r"one side only: psnr \(b\)"):
        compare([result(1.0)], [result(1.0), result(1.0, PSNR)])
    with pytest.raises(ValueError, match="several subjects.*model student"):
        compare([result(1.0), result(1.0, PSNR, "student")], [result(1.0)])
    with pytest.raises(ValueError, match="twice by one protocol in b"):
        compare([result(1.0)], [result(1.0), result(2.0)])
    with pytest.raises(ValueError, match="b: no results"):
        compare([result(1.0)], [])


def test_waived_differences_are_said():
    newer = dataclasses.replace(FVD, version="9.9")
    table = compare([result(1.0)], [result(2.0, newer)], ignore=["version"])
    assert f"- ignored: version '{FVD.version}' and '9.9'" in table
    with pytest.raises(ValueError, match="not comparable: version"):
        compare([result(1.0)], [result(2.0, newer)], ignore=["seed"])
    with pytest.raises(ValueError, match=r"ignore \['vesrion'\]"):
        compare([result(1.0)], [result(2.0)], ignore=["vesrion"])
    assert "ignored" not in compare([result(1.0)], [result(2.0)], ignore=["version"])
