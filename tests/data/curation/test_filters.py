"""Which clips are kept, from scores alone."""

import numpy as np
import pytest

from vdm_jax.data.curation import filters
from vdm_jax.data.curation.filters import ClipRow
from vdm_jax.data.curation.settings import Settings

HASHES = {
    name: np.random.default_rng(seed).integers(0, 2**63, 9).tolist()
    for seed, name in enumerate("abc")
}


def row(name, reason=""):
    return ClipRow(film="film.mp4", name=name, reason=reason)


def kept(rows, hashes, **keep):
    settings = Settings(keep={"duplicate": "first"} | keep)
    return [one.name for one in filters.without_copies(rows, hashes, settings) if one.kept]


def test_the_first_of_several_copies_is_kept():
    hashes = {"a": HASHES["a"], "again": HASHES["a"], "b": HASHES["b"], "third": HASHES["a"]}
    assert kept([row(name) for name in hashes], hashes) == ["a", "b"]
    assert kept([row(name) for name in hashes], hashes, duplicate="") == list(hashes)


def test_a_copy_of_a_clip_that_is_dropped_is_kept():
    hashes = {"a": HASHES["a"], "again": HASHES["a"], "third": HASHES["a"]}
    rows = [row("a", "sharpness 1 is outside 5:"), row("again"), row("third")]
    assert kept(rows, hashes) == ["again"]
    found = filters.without_copies(rows, hashes, Settings())
    assert [one.copy_of for one in found] == ["again", "", "again"]
    assert found[0].reason == "sharpness 1 is outside 5:; copy of again"


@pytest.mark.parametrize("value,reason", [(3.0, ""), (0.5, "mine 0.5 is outside 1:")])
def test_a_later_score_is_added_and_filtered(value, reason):
    found = filters.with_score(row("a"), "mine", value, Settings(keep={"mine": "1:"}))
    assert found.scores == {"mine": value} and found.reason == reason
