"""Batches of one clip."""

import numpy as np
import pytest

from vdm_jax.data.one_clip import OneClip
from vdm_jax.models.text.words import WordEncoder

WORDS = WordEncoder(["red", "left"], max_length=3, vocabulary_size=2)
CLIP = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)


def test_each_batch_is_the_clip_with_its_prompt():
    batches = iter(OneClip(CLIP, "red left", WORDS))
    first, second = next(batches), next(batches)
    for batch in (first, second):
        np.testing.assert_array_equal(batch["video"], CLIP[None])
        np.testing.assert_array_equal(batch["tokens"], WORDS.encode(["red left"])["tokens"])
    assert not any(name.startswith("null_") for name in first)


def test_the_text_that_stands_for_no_text_is_beside_it(monkeypatch):
    monkeypatch.setattr(WORDS, "null_text", "left", raising=False)
    batch = next(iter(OneClip(CLIP, "red", WORDS)))
    np.testing.assert_array_equal(batch["null_tokens"], WORDS.encode(["left"])["tokens"])
    assert (batch["null_tokens"] != batch["tokens"]).any()


def test_the_position_is_the_number_of_batches():
    batches = iter(OneClip(CLIP, "red", WORDS))
    next(batches)
    other = iter(OneClip(CLIP, "red", WORDS))
    other.set_state(batches.get_state())
    next(other)
    assert other.get_state() == {"batches_given": 2}


def test_a_prompt_that_would_be_cut_is_refused():
    with pytest.raises(ValueError, match="4"):
        OneClip(CLIP, "red left red left", WORDS)
