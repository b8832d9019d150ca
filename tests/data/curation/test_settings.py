"""Settings that make no sense are refused by name, and identities change with what matters."""

import importlib.util

import pytest

from vdm_jax.data.curation.settings import Clips, Cuts, Range, Samples, Settings, Text
from vdm_jax.data.curation.stages import Plan
from vdm_jax.data.source import DataError


@pytest.mark.parametrize(
    "values,message",
    [
        ({"clips": {"least": 3, "most": 4}}, r"clips.most = 4.0: must be at least 6"),
        ({"clips": {"least": 0.2}}, r"clips.least = 0.2: must be at least 0.5"),
        ({"cuts": {"side": 4}}, r"cuts.side = 4: must be at least 16"),
        ({"output": {"quality": 60}}, r"output.quality = 60: must be at least 0 and at most 51"),
        ({"text": {"detector": "ocr"}}, r"text.detector = 'ocr': allowed are none, ppocr"),
        ({"keep": {"motion": "fast"}}, r"keep.motion = 'fast': must be LEAST:MOST"),
        ({"keep": {"duplicate": "all"}}, r"keep.duplicate = 'all': allowed are first, and empty"),
        ({"clips": {"length": 3}}, r"clips.length: no such field; fields of clips are trim"),
        ({"clips": {"least": "long"}}, r"clips.least = 'long': must be a float"),
        ({"cuts": {"gradual": 1}}, r"cuts.gradual = 1: must be a bool"),
        ({"keep": {"motion": 0.5}}, r"keep.motion = 0.5: must be a str"),
        ({"clip": {}}, r"clip: not a section; sections are cuts"),
    ],
)
def test_mistakes_are_named(values, message):
    with pytest.raises(DataError, match=message):
        Settings.from_dict(values)


def test_ranges():
    assert 0.5 in Range.parse("motion", "0.5:") and 0.4 not in Range.parse("motion", "0.5:")
    assert 0.07 in Range.parse("text", ":0.07") and 0.08 not in Range.parse("text", ":0.07")
    assert 5.0 in Range.parse("motion", "")


def test_settings_survive_json():
    settings = Settings.from_dict({"clips": {"most": 9.0}, "keep": {"mine": "1:2"}})
    assert Settings.from_dict(settings.to_dict()) == settings
    assert Settings.from_dict({"clips": {"most": 9}}).clips.most == 9.0
    assert settings.keep["mine"] == "1:2" and settings.keep["black"] == ":0.5"


def identities(**changes):
    plan = Plan.of(Settings(**changes))
    return {"cuts": plan.cuts, "clips": plan.clips} | {
        stage.name: stage.identity for stage in plan.stages
    }


def changed(**changes):
    plain, other = identities(), identities(**changes)
    return {name for name in plain if plain[name] != other[name]}


def test_a_stage_depends_on_its_own_settings_and_on_those_before_it():
    scores = {"motion", "look", "hashes", "thumbnail"}
    assert changed() == set()
    assert changed(keep={"motion": "5:"}) == set()
    assert changed(cuts=Cuts(adaptive=4.0)) == {"cuts", "clips"} | scores
    assert changed(clips=Clips(trim=0.1)) == {"clips"} | scores
    assert changed(samples=Samples(rate=3.0)) == scores


def test_a_detector_whose_package_is_missing_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r'pip install "vdm_jax\[ocr\]"'):
        Plan.of(Settings(text=Text(detector="ppocr")))
