"""The names of the classes fit the weights, and accuracy counts what it says."""

import numpy as np
import pytest

from vdm_jax.evaluation import i3d, i3d_weights, kinetics


def test_there_are_400_names_in_order():
    names = kinetics.class_names()
    assert len(names) == len(set(names)) == i3d.CLASSES
    assert list(names) == sorted(names)
    # Of the printed example of the published network, and known places.
    assert {"hurling (sport)", "shooting goal (soccer)", "playing cricket"} <= set(names)
    assert [names.index(name) for name in ("abseiling", "archery", "zumba")] == [0, 5, 399]
    np.testing.assert_array_equal(kinetics.classes(names), np.arange(400))


def test_captions_name_classes():
    written = ["Hurling_Sport", "passing american football (in game)", " zumba"]
    assert [kinetics.class_names()[n] for n in kinetics.classes(written)] == [
        "hurling (sport)",
        "passing American football (in game)",
        "zumba",
    ]
    message = "captions 'a', 'b', 'c', ...: must be names of Kinetics-400's classes"
    with pytest.raises(ValueError, match=message):
        kinetics.classes(["zumba", "a", "b", "b", "c", "d"])
    with pytest.raises(ValueError, match="captions are missing"):
        kinetics.classes([])


def test_the_first_classes():
    logits = np.array([[3.0, 2, 1, 0], [0, 1, 2, 3], [1, 1, 1, 1], [5, 9, 9, 0]])
    numbers = np.array([0, 2, 1, 2])
    found = {k: kinetics.among_first(logits, numbers, k).tolist() for k in (1, 2, 3)}
    assert found[1] == [True, False, False, False]
    assert found[2] == [True, True, False, True]
    assert found[3] == [True, True, False, True]
    with pytest.raises(ValueError, match="k 4, numbers from 0 to 2"):
        kinetics.among_first(logits, numbers, 4)
    with pytest.raises(ValueError, match="numbers from 0 to 4"):
        kinetics.among_first(logits, np.array([0, 1, 2, 4]), 1)
    with pytest.raises(ValueError, match=r"numbers \[3\]: must be"):
        kinetics.among_first(logits, numbers[:3], 1)


def test_the_names_fit_the_weights():
    """The last layer's vectors of classes that are alike lie close to each other: of a class and
    its nearest, a third have a word in common, by another order of the names a tenth."""
    try:
        params = i3d_weights.load_weights()
    except i3d_weights.WeightsUnavailable as error:
        pytest.skip(str(error))
    vectors = np.asarray(params["Logits_Conv3d_0c_1x1"]["kernel"], np.float64).T
    vectors -= vectors.mean(0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    alike = vectors @ vectors.T
    np.fill_diagonal(alike, -1)
    nearest = alike.argmax(1)
    words = [set(name.split()) for name in kinetics.class_names()]

    def share(shift):
        order = np.roll(np.arange(400), shift)
        return np.mean([bool(words[order[i]] & words[order[j]]) for i, j in enumerate(nearest)])

    assert share(0) > 0.35
    assert max(share(shift) for shift in (-2, -1, 1, 2)) < 0.15
    names = kinetics.class_names()
    for one, other in (
        ("eating hotdog", "eating burger"),
        ("skiing slalom", "skiing (not slalom or crosscountry)"),
        ("shot put", "throwing discus"),
        ("writing", "drawing"),
    ):
        assert names[nearest[names.index(one)]] == other
