import numpy as np
import pytest

from vdm_jax.models.text.words import WordEncoder

ENCODER = WordEncoder(["a", "ball", "red", "rolls"], max_length=4, vocabulary_size=6)


def test_encodes_words_and_pads():
    encoded = ENCODER.encode(["A red ball!", ""])
    np.testing.assert_array_equal(encoded["tokens"], [[2, 4, 3, 0], [0, 0, 0, 0]])
    # Attention over no token at all is undefined: an empty caption keeps one.
    np.testing.assert_array_equal(encoded["token_mask"], [[1, 1, 1, 0], [1, 0, 0, 0]])
    assert encoded["tokens"].dtype == np.int32 and encoded["token_mask"].dtype == bool


def test_unknown_words_pass_in_training_and_are_refused_in_prompts():
    np.testing.assert_array_equal(ENCODER.encode(["a blue ball"])["tokens"], [[2, 1, 3, 0]])
    with pytest.raises(ValueError, match="'blue'; it knows: a, ball, red, rolls"):
        ENCODER.encode(["a blue ball"], strict=True)
    with pytest.raises(ValueError, match="5 words; at most text.max_length = 4"):
        ENCODER.encode(["a red ball rolls red"], strict=True)


def test_vocabulary_is_the_most_frequent_words():
    texts = ["b b b c", "c a", "c d"]
    encoder = WordEncoder.from_texts(texts, max_length=4, vocabulary_size=2)
    assert encoder.words == ("b", "c")
    assert encoder.vocab_size == 4  # padding and unknown beside the two


def test_what_captions_lose_names_the_field_that_changes_it():
    assert ENCODER.losses(["a red ball rolls", "", "Red"]) == ""
    lost = ENCODER.losses(["a red ball rolls red red", "a blue ball", "a blue dog"])
    assert "1 of 3 captions are longer than text.max_length = 4 words and are cut" in lost
    assert "the longest has 6" in lost
    assert "2 words of the captions are not in the vocabulary (text.vocabulary_size = 6)" in lost
    assert lost.endswith("blue, dog")


def test_bad_vocabularies():
    with pytest.raises(ValueError, match="distinct"):
        WordEncoder(["a", "a"], max_length=4, vocabulary_size=4)
    with pytest.raises(ValueError, match="text.vocabulary_size = 1"):
        WordEncoder(["a", "b"], max_length=4, vocabulary_size=1)
