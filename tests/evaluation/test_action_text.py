"""Clips as the expected meaning of their classes, and captions: cosines, and who is retrieved."""

import numpy as np
import pytest

from tests.evaluation.test_suite import Colours, coloured, measure
from vdm_jax.evaluation import action_text, kinetics
from vdm_jax.weights import fetch


def words(texts):
    """An embedding of texts that has a direction for every word."""
    known = sorted({word for name in kinetics.class_names() for word in name.split()} | {"a"})
    return np.array([[text.split().count(word) for word in known] for text in texts], float)


def test_a_clip_is_the_expectation_of_its_classes():
    names = np.array([[2.0, 0, 0], [0, 1, 0], [0, 0, 3]])
    captions = np.array([[1.0, 0, 0], [0, 5, 0]])
    logits = np.log([[0.5, 0.5, 1e-30], [1e-30, 1.0, 1e-30], [0.2, 0.2, 0.6]]) + 7
    means = np.array([[1, 0.5, 0], [0, 1, 0], [0.4, 0.2, 1.8]])
    expected = means[:, :2] / np.linalg.norm(means, axis=1, keepdims=True)
    found = action_text.similarities(logits, names, captions)
    np.testing.assert_allclose(found, expected, atol=1e-12)
    with pytest.raises(ValueError, match=r"logits \[3, 2\]: must be \[n, 3\]"):
        action_text.similarities(logits[:, :2], names, captions)
    with pytest.raises(ValueError, match="features of 3 and of 2 dimensions"):
        action_text.similarities(logits, names, captions[:, :2])


def one_hot(*names, size=30.0):
    logits = np.zeros((len(names), 400))
    for row, name in zip(logits, names, strict=True):
        row[kinetics.class_names().index(name)] = size
    return logits


def test_captions_are_retrieved():
    logits = one_hot("playing chess", "eating cake", "eating cake", "zumba")
    right = ["playing chess", "eating a cake", "eating a cake", "zumba"]
    found = action_text.match(logits, right, words)
    assert found.captions == 3 and found.retrieved == 1
    np.testing.assert_allclose(found.own, [1, np.sqrt(2 / 3), np.sqrt(2 / 3), 1], rtol=1e-6)
    assert found.others == pytest.approx(0, abs=1e-6)
    wrong = action_text.match(logits, right[1:] + right[:1], words)
    assert wrong.retrieved == 0.25 and wrong.others > 0.3
    # What is the same in all captions tells them not apart.
    same = action_text.match(np.zeros((4, 400)), ["a", "zumba a", "a zumba", "a a"], words)
    assert same.retrieved == 0
    alone = action_text.match(logits, ["zumba"] * 4, words)
    assert np.isnan(alone.retrieved) and alone.own.tolist() == pytest.approx([0, 0, 0, 1], abs=1e-6)
    with pytest.raises(ValueError, match="every sample needs a caption"):
        action_text.match(logits, ["zumba", " ", "zumba", "zumba"], words)


def test_it_is_a_metric():
    names = [kinetics.class_names()[number] for number in (10, 20, 30, 40)]
    found = coloured([[[number, 0, 0]] * 2 for number in (10, 20, 30, 40)], names)
    sentences = action_text.Sentences(encode=words, protocol={"text": "words"})
    result = measure(found, None, ["action_text"], network=Colours(), sentences=sentences)
    result = result["action_text"]
    assert result.extra["action_text_retrieval"] == 1 and result.extra["action_text_chance"] == 0.25
    assert result.extra["action_text_others"] < result.low < result.value < result.high
    assert result.protocol.options == {"text": "words", "captions": 4}
    silent = coloured([[[0, 0, 0]] * 2])
    with pytest.raises(ValueError, match="action_text: the samples have no captions"):
        measure(silent, None, ["action_text"], network=Colours(), sentences=sentences)


def test_sentences_of_other_words_are_retrieved():
    try:
        sentences = action_text.load_sentences()
    except fetch.WeightsUnavailable as error:
        pytest.skip(str(error))
    captions = {
        "playing guitar": "a man sits on a bed with his guitar and sings",
        "mowing lawn": "a woman cuts the grass in her garden",
        "surfing water": "riding a wave on a board at the beach",
        "walking the dog": "taking the puppy out on a leash",
        "washing dishes": "cleaning plates in the kitchen sink",
        "playing chess": "two old men move pieces on a checkered board",
    }
    found = action_text.match(one_hot(*captions), list(captions.values()), sentences.encode)
    assert found.retrieved == 1 and found.own.min() > found.others + 0.1
    # Colours it cannot see: the clip is the same whatever the caption says of them.
    red, blue = sentences.encode(["a red kite in the sky", "a blue kite in the sky"])
    assert red @ blue > 0.8
