"""Distances against closed forms and independent calculations; intervals cover what they say."""

import numpy as np
import pytest

from vdm_jax.evaluation.distances import (
    inception_score,
    kernel_distance,
    precision_recall,
)
from vdm_jax.evaluation.frechet import (
    frechet,
    frechet_from_features,
    frechet_infinity,
    frechet_interval,
)
from vdm_jax.evaluation.intervals import bootstrap, half_sampling, share_interval
from vdm_jax.evaluation.moments import Moments

linalg = pytest.importorskip("scipy.linalg")


def random(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


def exactly(mean, variances, count=10**9):
    """Moments of a diagonal Gaussian."""
    mean = np.asarray(mean, np.float64)
    scatter = np.diag(variances) * (count - 1.0)
    return Moments.from_dict({"count": np.asarray(count), "mean": mean, "scatter": scatter})


def by_sqrtm(mean_a, covariance_a, mean_b, covariance_b):
    root = linalg.sqrtm(covariance_a @ covariance_b)
    traces = np.trace(covariance_a) + np.trace(covariance_b) - 2 * np.trace(root).real
    return ((mean_a - mean_b) ** 2).sum() + traces


# Fréchet distance


def test_frechet_of_one_dimension():
    assert frechet([1.0], [[4.0]], [3.0], [[9.0]]) == pytest.approx((1 - 3) ** 2 + (2 - 3) ** 2)


def test_frechet_of_diagonal_gaussians():
    a, b = np.exp(random(2, 9))
    means = random(2, 9, seed=1)
    expected = ((means[0] - means[1]) ** 2).sum() + ((a - b) ** 2).sum()
    assert frechet(means[0], np.diag(a**2), means[1], np.diag(b**2)) == pytest.approx(expected)


def test_frechet_of_rotated_gaussians():
    # Tr (Σa Σb)^½ is not Σ sa sb once the axes differ.
    a, b = np.cov(random(50, 6), rowvar=False), np.cov(random(60, 6, seed=1) * 2, rowvar=False)
    means = random(2, 6, seed=2)
    expected = by_sqrtm(means[0], a, means[1], b)
    assert frechet(means[0], a, means[1], b) == pytest.approx(expected, rel=1e-9)
    assert frechet(means[1], b, means[0], a) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_singular_covariances_is_exact():
    # Along one axis each: no overlap, so nothing is taken off the traces.
    x, y = np.diag([1.0, 0, 0]), np.diag([0, 1.0, 0])
    assert frechet(np.zeros(3), x, np.zeros(3), y) == 2.0
    assert frechet(np.zeros(3), x, np.zeros(3), 0 * y) == 1.0
    # Lines at an angle: the root's trace is the cosine between them.
    for angle in (1e-3, 0.5):
        u = np.array([np.cos(angle), np.sin(angle), 0])
        distance = frechet(np.zeros(3), x, np.zeros(3), np.outer(u, u))
        assert distance == pytest.approx(2 - 2 * np.cos(angle), abs=1e-14)
    v = random(40, 1)
    assert frechet(np.zeros(40), v @ v.T, np.zeros(40), v @ v.T) < 1e-12


@pytest.mark.parametrize(("n", "m", "d"), [(80, 70, 8), (9, 80, 30), (80, 9, 30), (9, 7, 30)])
def test_features_and_moments_agree(n, m, d):
    a, b = random(n, d) @ random(d, d, seed=1) + 0.3, random(m, d, seed=2)
    x, y = Moments.of(a), Moments.of(b)
    value = frechet_from_features(a, b)
    args = (x.mean, x.covariance, y.mean, y.covariance)
    assert value == pytest.approx(frechet(*args), rel=1e-10)
    assert value == pytest.approx(frechet_from_features(a, y), rel=1e-10)
    assert value == pytest.approx(frechet_from_features(b, x), rel=1e-10)
    if min(n, m) > d:  # sqrtm itself is at a loss with singular matrices
        assert value == pytest.approx(by_sqrtm(*args), rel=1e-9)
    assert 0 <= frechet_from_features(a, a) < 1e-9


def test_dead_features_change_nothing():
    a, b = random(40, 5), random(40, 5, seed=1) + 1
    dead = np.zeros((40, 3))
    padded = [np.concatenate([x, dead], 1) for x in (a, b)]
    expected = frechet_from_features(a, b)
    assert frechet_from_features(*padded) == pytest.approx(expected, rel=1e-12)
    assert frechet_interval(*padded, replicates=9)[1:3] == pytest.approx(
        frechet_interval(a, b, replicates=9)[1:3], rel=1e-6
    )


def test_bad_gaussians_and_features_are_refused():
    zero, eye = np.zeros(3), np.eye(3)
    with pytest.raises(ValueError, match="symmetric"):
        frechet(zero, eye + np.triu(np.ones((3, 3))), zero, eye)
    with pytest.raises(ValueError, match="no eigenvalue below 0, has -1"):
        frechet(zero, eye, zero, np.diag([1.0, 1.0, -1.0]))
    with pytest.raises(ValueError, match=r"covariance \[2, 2\]: must be \[3, 3\]"):
        frechet(zero, np.eye(2), zero, eye)
    with pytest.raises(ValueError, match="means"):
        frechet(zero, eye, np.zeros(2), eye)
    with pytest.raises(ValueError, match="finite"):
        frechet(zero * np.nan, eye, zero, eye)
    x = random(9, 3)
    with pytest.raises(ValueError, match="of 3 and of 2 dimensions"):
        frechet_from_features(x, x[:, :2])
    with pytest.raises(ValueError, match="must be of 2 or more; give more vid"):
        frechet_from_features(x[:1], x)
    with pytest.raises(ValueError, match="must be finite"):
        frechet_from_features(x, np.where(x > 1, np.inf, x))
    with pytest.raises(ValueError, match="0 samples"):
        frechet_from_features(x, Moments(3))
    with pytest.raises(ValueError, match="features"):
        kernel_distance(x, Moments.of(x))


# Extrapolation


@pytest.mark.parametrize("fixed", [True, False])
def test_infinity_is_nearer_than_the_plain_distance(fixed):
    d, n, trials = 12, 120, 8
    known = 12 * 0.2**2 + 0.5**2
    plain, infinite = [], []
    for seed in range(trials):
        a, b = random(2, n, d, seed=seed)
        a = 1.2 * a + np.r_[0.5, np.zeros(d - 1)]
        reference = exactly(np.zeros(d), np.ones(d)) if fixed else b
        plain.append(frechet_from_features(a, reference))
        infinite.append(frechet_infinity(a, reference, repeats=2, seed=seed))
    values = [x.value for x in infinite]
    assert np.mean(plain) - known > 0.4
    assert abs(np.mean(values) - known) < 0.3 * (np.mean(plain) - known)
    assert (
        np.abs(np.subtract(values, known)).mean() < 0.5 * np.abs(np.subtract(plain, known)).mean()
    )
    # The bias is what the slope says it is.
    slope = np.mean([x.slope for x in infinite])
    assert slope / n == pytest.approx(np.mean(plain) - known, rel=0.35)


def test_infinity_says_what_it_fitted():
    a, b = random(60, 4), random(90, 4, seed=1) + 1
    fit = frechet_infinity(a, b, points=4, smallest=20, seed=3)
    assert fit.sizes.tolist() == [20, 33, 46, 60]
    assert fit.distances[-1] == pytest.approx(frechet_from_features(a, b), rel=1e-6)
    line = fit.value + fit.slope / fit.sizes
    assert fit.residual == pytest.approx(np.sqrt(np.mean((fit.distances - line) ** 2)))
    residual = fit.distances - line  # of least squares: orthogonal to the constant and to 1/N
    np.testing.assert_allclose([residual.sum(), residual @ (1 / fit.sizes)], 0, atol=1e-9)
    again, other = (frechet_infinity(a, b, points=4, smallest=20, seed=s) for s in (3, 4))
    np.testing.assert_array_equal(again.distances, fit.distances)
    assert other.distances[0] != fit.distances[0]
    averaged = frechet_infinity(a, b, points=4, smallest=20, repeats=30, seed=3)
    assert averaged.distances[0] != fit.distances[0]  # though its first draw is the same
    assert averaged.residual < fit.residual
    for wrong in ({"points": 1}, {"smallest": 1}, {"smallest": 60}, {"repeats": 0}):
        with pytest.raises(ValueError, match="two sizes"):
            frechet_infinity(a, b, **wrong)


# Kernel distance


def test_kernel_distance_is_the_mean_over_pairs():
    a, b = random(7, 3), random(5, 3, seed=1) + 0.5

    def kernel(x, y):
        return (x @ y / 3 + 1) ** 3

    within = [
        np.mean([kernel(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j])
        for x in (a, b)
    ]
    between = np.mean([kernel(x, y) for x in a for y in b])
    result = kernel_distance(a, b)
    assert result.value == pytest.approx(sum(within) - 2 * between, rel=1e-12)
    left_out = [
        [kernel_distance(np.delete(a, i, 0), b).value for i in range(7)],
        [kernel_distance(a, np.delete(b, i, 0)).value for i in range(5)],
    ]
    variance = sum((len(x) - 1) * np.var(x) for x in left_out)
    assert result.standard_error == pytest.approx(np.sqrt(variance), rel=1e-9)


def test_kernel_distance_in_rows_is_that_at_once(monkeypatch):
    a, b = random(50, 3), random(41, 3, seed=1)
    at_once = kernel_distance(a, b)
    monkeypatch.setattr("vdm_jax.evaluation.distances._KERNEL_ROWS", 8)
    np.testing.assert_allclose(kernel_distance(a, b), at_once, rtol=1e-10)


@pytest.mark.parametrize("block_size", [None, 15])
def test_kernel_distance_of_equal_distributions_is_0_on_average(block_size):
    draws = [
        kernel_distance(*random(2, 60, 5, seed=seed), block_size=block_size) for seed in range(300)
    ]
    values, errors = np.array(draws).T
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(300)
    assert (values < 0).mean() > 0.3
    # The jackknife's is too large by up to √2 here, as documented.
    expected = (0.85, 1.15) if block_size else (1.2, 1.6)
    assert expected[0] < np.sqrt(np.mean(errors**2)) / values.std() < expected[1]


@pytest.mark.parametrize("block_size", [None, 15])
def test_kernel_distance_of_others_has_an_honest_error(block_size):
    # The kernel's expectation for normal x and y: E (s + 1)³ = 1 + 3 E s² with s = x·y/d and means
    # of 0, so MMD² has a closed form for scaled normals.
    d, scale = 5, 1.5
    known = 3 / d * (1 + scale**4 - 2 * scale**2)
    draws = [
        kernel_distance(
            random(60, d, seed=2 * i), scale * random(60, d, seed=2 * i + 1), block_size=block_size
        )
        for i in range(300)
    ]
    values, errors = np.array(draws).T
    assert abs(values.mean() - known) < 3 * values.std() / np.sqrt(300)
    assert 0.85 < np.sqrt(np.mean(errors**2)) / values.std() < 1.3


def test_kernel_distance_of_unequal_numbers_in_blocks():
    a, b = random(95, 3), random(40, 3, seed=1)
    result = kernel_distance(a, b, block_size=10)
    assert result == kernel_distance(a, b, block_size=10)
    assert result != kernel_distance(a, b, block_size=10, seed=1)
    assert abs(result.value) < 4 * result.standard_error


def test_kernel_distance_refuses_too_few():
    x = random(20, 3)
    for size in (0, 1, 11):
        with pytest.raises(ValueError, match=f"block_size {size}"):
            kernel_distance(x, x, block_size=size)


# Precision and recall


def ring(n, centre, seed):
    angle = np.random.default_rng(seed).uniform(0, 2 * np.pi, n)
    return np.stack([np.cos(angle), np.sin(angle)], -1) + centre


def test_precision_and_recall_of_known_shapes():
    real = np.concatenate([ring(60, (0, 0), 0), ring(60, (9, 0), 1)])
    same = np.concatenate([ring(60, (0, 0), 2), ring(60, (9, 0), 3)])
    one_mode = ring(120, (0, 0), 4)
    more = np.concatenate([ring(60, (0, 0), 5), ring(60, (0, 9), 6)])
    assert precision_recall(real, real) == (1, 1)
    assert min(precision_recall(same, real)) > 0.9
    assert precision_recall(real + 100, real) == (0, 0)
    precision, recall = precision_recall(one_mode, real)
    assert precision > 0.9 and recall == 0.5
    precision, recall = precision_recall(more, real)
    assert precision == pytest.approx(0.5, abs=0.05) and 0.4 < recall <= 0.5


def test_neighbourhoods_reach_to_the_kth_other_sample():
    # Of 0, 1, 3 and 7, the second nearest other is at 3, 2, 3 and 6.
    line = np.array([[0.0], [1.0], [3.0], [7.0]])
    radii = np.array([3.0, 2.0, 3.0, 6.0])
    points = np.array([[-2.9], [-3.1], [13.1], [12.9], [100.0]])
    inside = (np.abs(points - line.T) <= radii).any(1)
    assert precision_recall(points, line, k=2).precision == inside.mean() == 0.4


@pytest.mark.parametrize("block", [1, 2, 7, 1000])
def test_precision_and_recall_in_tiles_are_those_at_once(block):
    a, b = random(33, 4), random(29, 4, seed=1) * 1.3 + 1e7
    a += 1e7 + 0.7  # far from the origin, where |x|² + |y|² - 2 x·y cancels

    def share(points, centres):
        radii = np.sort(np.linalg.norm(centres[:, None] - centres, axis=-1), 1)[:, 3]
        return (np.linalg.norm(points[:, None] - centres, axis=-1) <= radii).any(1).mean()

    expected = (share(a, b), share(b, a))
    assert 0 < expected[1] < expected[0] < 1
    assert precision_recall(a, b, block=block) == expected


def test_repeated_samples_lie_on_each_other():
    x = np.repeat(random(6, 300), 5, 0)
    assert precision_recall(x, x[::-1]) == (1, 1)
    assert precision_recall(x + 1e-3, x) == (0, 0)


def test_precision_and_recall_refuse_bad_arguments():
    x = random(5, 2)
    for wrong in ({"k": 0}, {"k": 5}, {"block": 0}):
        with pytest.raises(ValueError, match="k must be"):
            precision_recall(x, x, **wrong)


# Inception score


def test_inception_score_in_closed_form():
    assert inception_score(np.zeros((40, 7)), splits=4) == pytest.approx((1, 0))
    balanced = np.tile(np.eye(5) * 1000.0, (40, 1))
    assert inception_score(balanced, splits=1).value == pytest.approx(5)
    assert inception_score(balanced, splits=4, seed=None) == pytest.approx((5, 0))
    assert 4 < inception_score(balanced, splits=4).value < 5  # shuffled: not quite balanced
    in_order = balanced[np.argsort(balanced.argmax(1), kind="stable")]
    assert inception_score(in_order, splits=5, seed=None).value == pytest.approx(1)
    # Two classes, with probability p or 1 - p: log 2 less the entropy of p.
    p = 0.8
    logits = np.log([[p, 1 - p], [1 - p, p]]) - 1e4  # a shift that float32 would not survive
    expected = np.exp(np.log(2) + p * np.log(p) + (1 - p) * np.log(1 - p))
    assert inception_score(np.tile(logits, (10, 1)), splits=1).value == pytest.approx(expected)


def test_inception_score_spreads_over_its_splits():
    logits = np.concatenate([np.zeros((10, 3)), np.tile(np.eye(3) * 100, (3, 1))])
    value, deviation = inception_score(logits[:19], splits=2, seed=None)
    assert (value, deviation) == pytest.approx(((1 + 3) / 2, (3 - 1) / 2))
    with pytest.raises(ValueError, match="splits 20"):
        inception_score(logits, splits=20)
    with pytest.raises(ValueError, match="finite"):
        inception_score(np.full((9, 3), np.nan))


# Intervals


def coverage(make, known, trials=100):
    intervals = [make(seed) for seed in range(trials)]
    return np.mean([x.low <= known <= x.high for x in intervals])


def pair(seed, n=80, d=6):
    a, b = random(2, n, d, seed=seed)
    return 1.3 * a + np.r_[0.3, np.zeros(d - 1)], b


def test_intervals_of_the_frechet_distance_cover_it():
    known = 6 * 0.3**2 + 0.3**2
    assert coverage(lambda s: frechet_interval(*pair(s), replicates=99, seed=s), known) >= 0.9
    # As documented, the bootstrap does not.
    plain = coverage(
        lambda s: bootstrap(frechet_from_features, *pair(s), replicates=60, seed=s), known, 40
    )
    assert plain < 0.3
    fixed = exactly(np.zeros(6), np.ones(6))
    assert coverage(lambda s: frechet_interval(pair(s)[0], fixed, replicates=60), known) >= 0.9


def test_intervals_of_equal_distributions_start_at_0():
    for seed in range(10):
        interval = frechet_interval(*random(2, 60, 5, seed=seed), replicates=60)
        assert interval.low == 0 < interval.value


def test_the_fast_interval_is_the_general_one():
    for n, d in ((40, 5), (12, 30)):
        a, b = random(n, d) + 1, random(n + 9, d, seed=1) * 2
        fast = frechet_interval(a, b, replicates=20, level=0.9, seed=4)
        slow = half_sampling(frechet_from_features, a, b, replicates=20, level=0.9, seed=4)
        np.testing.assert_allclose(fast, slow, rtol=1e-5)
        other = frechet_interval(a, b, replicates=20, level=0.9, seed=5)
        assert fast.value == other.value and fast.low != other.low


def test_intervals_of_a_mean_are_the_textbooks():
    known, n = 0.7, 50
    width = 2 * 1.96 / np.sqrt(n)
    for interval in (bootstrap, half_sampling):

        def make(seed, interval=interval):
            return interval(np.mean, random(n, 1, seed=seed) + known, replicates=120, seed=seed)

        x = make(0)
        assert x.value == np.mean(random(n, 1) + known)
        assert x.high - x.low == pytest.approx(width, rel=0.25)
        assert x.standard_error == pytest.approx(1 / np.sqrt(n), rel=0.25)
        assert coverage(make, known, 300) >= 0.9


def test_levels_order_the_intervals():
    a, b = pair(0)
    narrow, wide = (frechet_interval(a, b, replicates=50, level=x) for x in (0.5, 0.95))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert narrow.value - narrow.bias == pytest.approx((narrow.low + narrow.high) / 2, rel=0.1)


def test_intervals_refuse_bad_arguments():
    x = random(9, 2)
    for wrong in ({"replicates": 1}, {"level": 0.0}, {"level": 95}):
        with pytest.raises(ValueError, match="replicates .*, level"):
            frechet_interval(x, x, **wrong)
        with pytest.raises(ValueError, match="replicates .*, level"):
            bootstrap(np.mean, x, **wrong)
    with pytest.raises(ValueError, match="3 clips: must be of 4 or more"):
        half_sampling(np.mean, x[:3])
    with pytest.raises(ValueError, match="3 clips: must be of 4 or more"):
        frechet_interval(x[:3], x)


def test_share_interval():
    """Wilson 1927; the values are those of Brown, Cai & DasGupta's formula 4 by hand."""
    found = share_interval(10, 10)
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(10 / (10 + 1.959964**2), rel=1e-5)
    found = share_interval(50, 100)
    assert found.low + found.high == pytest.approx(1.0)
    assert found.high - 0.5 == pytest.approx(0.0962, abs=2e-4)
    assert share_interval(0, 7).low == 0.0
    rng = np.random.default_rng(0)
    for share in (0.05, 0.5, 0.97):
        counts = rng.binomial(60, share, 4000)
        hits = [(f := share_interval(int(c), 60)).low <= share <= f.high for c in counts]
        assert 0.92 < np.mean(hits) < 0.98
    with pytest.raises(ValueError, match="8 of 7"):
        share_interval(8, 7)
