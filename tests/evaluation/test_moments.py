"""Streaming moments are those of all samples at once, however they are cut and merged."""

import functools
import itertools

import numpy as np
import pytest

from vdm_jax.evaluation.moments import Moments


def features(n=97, d=7, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)) @ generator.normal(size=(d, d)) + generator.normal(size=d)


def assert_moments_of(moments, x):
    assert moments.count == len(x)
    np.testing.assert_allclose(moments.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.covariance, np.cov(x, rowvar=False), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("cuts", [[], [1], [96], [1, 2, 3], [10, 10, 50], list(range(1, 97))])
def test_any_split_gives_the_moments_of_the_whole(cuts):
    x = features()
    parts = np.split(x, cuts)  # of [10, 10, 50], one is empty
    streamed = Moments(7)
    for part in parts:
        streamed.update(part)
    assert_moments_of(streamed, x)
    merged = functools.reduce(Moments.merge, [Moments.of(part) for part in parts], Moments(7))
    assert_moments_of(merged, x)


def test_merging_knows_no_order_and_no_grouping():
    x = features()
    parts = [Moments.of(part) for part in np.split(x, [5, 40])]
    for a, b, c in itertools.permutations(parts):
        assert_moments_of(a.merge(b).merge(c), x)
        assert_moments_of(a.merge(b.merge(c)), x)
    assert [part.count for part in parts] == [5, 35, 57]  # merging changed none


def test_a_far_away_mean_costs_no_precision():
    # Sums of squares, around 1e18, would leave nothing of variances of 1.
    x = features(n=1000) + 1e9
    moments = Moments(7)
    for part in np.split(x, 8):
        moments.update(part)
    np.testing.assert_allclose(moments.covariance, np.cov(x, rowvar=False), atol=1e-5)


def test_float32_is_summed_in_float64():
    x = features(n=20000, d=3).astype(np.float32)
    moments = Moments(3)
    for part in np.split(x, 20):
        moments.update(part)
    assert_moments_of(moments, x.astype(np.float64))
    assert moments.mean.dtype == moments.covariance.dtype == np.float64


def test_the_input_is_left_alone():
    x = features()
    before = x.copy()
    moments = Moments.of(x)
    moments.mean[:] = 0
    np.testing.assert_array_equal(x, before)
    assert_moments_of(moments, x)


def test_hosts_exchange_arrays():
    x = features()
    sent = Moments.of(x[:30])
    arrays = sent.to_dict()
    assert {name: array.dtype.name for name, array in arrays.items()} == {
        "count": "int64",
        "mean": "float64",
        "scatter": "float64",
    }
    received = Moments.from_dict(arrays)
    assert_moments_of(received.merge(Moments.of(x[30:])), x)
    received.update(x[30:])
    assert_moments_of(received, x)
    # Neither side's further samples reach the other.
    assert_moments_of(Moments.from_dict(arrays), x[:30])
    sent.update(x[30:])
    assert_moments_of(Moments.from_dict(arrays), x[:30])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mean": np.zeros(7, np.float32)}, "float32"),
        ({"scatter": np.zeros((7, 6))}, r"\[7, 6\]"),
        ({"scatter": np.full((7, 7), np.nan)}, "finite"),
        ({"count": np.asarray(-1)}, "count -1"),
        ({"more": np.zeros(1)}, "more"),
    ],
)
def test_bad_arrays_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Moments.from_dict({**Moments.of(features()).to_dict(), **change})


def test_bad_features_are_named_and_not_added():
    moments = Moments.of(features())
    bad = features()
    bad[4, 2], bad[9, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match="2 of 97 not finite, first: 4"):
        moments.update(bad)
    with pytest.raises(ValueError, match=r"features \[97, 6\]: must be \[n, 7\]"):
        moments.update(bad[:, :6])
    with pytest.raises(ValueError, match=r"features \[7\]"):
        moments.update(bad[0])
    with pytest.raises(ValueError, match="of 7 and of 6"):
        moments.merge(Moments(6))
    with pytest.raises(ValueError, match="dim 0"):
        Moments(0)
    assert_moments_of(moments, features())


def test_too_few_samples_have_no_moments():
    with pytest.raises(ValueError, match="0 samples: a mean needs at least 1"):
        _ = Moments(3).mean
    one = Moments.of(np.ones((1, 3)))
    np.testing.assert_array_equal(one.mean, np.ones(3))
    with pytest.raises(ValueError, match="1 samples: a covariance needs at least 2"):
        _ = one.covariance
