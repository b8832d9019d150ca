"""Which clips are kept, from scores alone."""

import numpy as np
import pytest

from vdm_jax.data.curation import filters, output
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


def test_shards_keep_their_numbers_when_ranges_change():
    """A shard is of films that follow each other, up to a length of film, whatever is kept."""
    rows = [
        ClipRow(film=f"{number}.mp4", name=f"{number}-{clip}", start=30.0 * clip, seconds=30.0)
        for number in range(4)
        for clip in range(2)
    ]

    def names(rows):
        return [[one.name for one in shard] for shard in output._divided(rows, 2.5)]

    assert names(rows) == [["0-0", "0-1", "1-0", "1-1"], ["2-0", "2-1", "3-0", "3-1"]]
    some = [row for row in rows if row.film < "2"]
    dropped = [ClipRow(film=one.film, name=one.name, seconds=60.0, reason="x") for one in some]
    assert names(dropped + rows[4:]) == [[], ["2-0", "2-1", "3-0", "3-1"]]
