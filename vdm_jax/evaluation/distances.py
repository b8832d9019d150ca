"""Distances between sets of features: Fréchet, kernel, precision and recall, and how sure they are.

Features are arrays [n, d] on the host, one row a clip or a frame; everything is float64. The
Fréchet distance is never computed from complex numbers: with Σ = FᵀF for each covariance,
tr (Σa Σb)^½ is the nuclear norm of Fa Fbᵀ, the sum of its singular values. F is [rank, d], or the
centred features themselves where they are fewer than d.
"""

import statistics
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

from vdm_jax.evaluation.moments import Moments

_ROUNDING = 1e-12  # squared distances below it, relative to the squared norms, are 0
_KERNEL_ROWS = 1024


def frechet(
    mean_a: Float[np.ndarray, "d"],
    covariance_a: Float[np.ndarray, "d d"],
    mean_b: Float[np.ndarray, "d"],
    covariance_b: Float[np.ndarray, "d d"],
) -> float:
    """The squared Fréchet distance of two Gaussians: FID and FVD are it, of the features' moments.

    |ma - mb|² + tr(Σa + Σb - 2 (Σa Σb)^½) (Dowson & Landau 1982; Heusel et al. 2017, equation 6).
    Each Σ is factored by its eigenvectors; eigenvalues below rounding count as 0, so a covariance
    of fewer samples than dimensions is taken as exactly what it is, without adding to its diagonal.
    Returns a float of 0 or more, in squared units of the features. Raises ValueError for shapes
    that do not fit, values that are not finite, and matrices that are no covariance.
    """
    mean_a, mean_b = np.asarray(mean_a, np.float64), np.asarray(mean_b, np.float64)
    if mean_a.ndim != 1 or mean_a.shape != mean_b.shape:
        raise ValueError(f"means {list(mean_a.shape)}, {list(mean_b.shape)}: must be [d], equal")
    if not (np.isfinite(mean_a).all() and np.isfinite(mean_b).all()):
        raise ValueError("means: must be finite")
    factors = [_factor(covariance, mean_a.size) for covariance in (covariance_a, covariance_b)]
    return _combine(*zip((mean_a, mean_b), factors, strict=True))


def frechet_from_features(
    a: Shaped[np.ndarray, "n d"], b: Shaped[np.ndarray, "m d"] | Moments
) -> float:
    """`frechet` of the features' means and covariances (divided by n - 1).

    With fewer samples than dimensions no [d, d] matrix is made: only the singular values of the
    centred features' cross Gram matrix, [n, m], are needed. For more samples than fit into memory
    use `Moments` and `frechet`. Raises ValueError for other shapes, values that are not finite,
    and fewer than two samples.
    """
    return _combine(*(_moments(x) for x in _pair(a, b, moments=True)))


class Extrapolation(NamedTuple):
    """The Fréchet distance in the limit of infinitely many samples.

    Attributes:
      value: the fitted line at 1/N = 0. May be slightly negative, for equal distributions.
      slope: of the distance over 1/N.
      sizes: the N of the fit, int64 [points], ascending.
      distances: measured with N samples, float64 [points].
      residual: root mean square distance of the points from the line.
    """

    value: float
    slope: float
    sizes: Int[np.ndarray, "points"]
    distances: Float[np.ndarray, "points"]
    residual: float


def frechet_infinity(
    features: Shaped[np.ndarray, "n d"],
    reference: Shaped[np.ndarray, "m d"] | Moments,
    *,
    points: int = 15,
    smallest: int | None = None,
    repeats: int = 1,
    seed: int = 0,
) -> Extrapolation:
    """FVD∞ and FID∞: the bias of the Fréchet distance, K/N for N samples, extrapolated away.

    A line is fitted by least squares to distances of random subsets without replacement over 1/N
    (Chong & Forsyth 2020, section 3). The N are `points` sizes from `smallest` to all samples,
    evenly spaced; at each, `repeats` subsets are averaged.

    A `reference` given as `Moments` is held fixed, as in the paper, and its own bias stays. Given
    as features [m, d], subsets of it shrink in the same proportion, so its bias goes too,
    and the line is straighter.

    The line bends where N is not far above d. Hence `smallest` is half of the samples by default
    instead of the paper's tenth: for Gaussians in 48 dimensions and n = m = 4d, a distance of 2.17
    is measured as 10.3 on average; from a half it is extrapolated to 2.1, from a tenth to 5.1. With
    n = m = d, a half still leaves more than a quarter of the bias.

    Deterministic in `seed`. Raises ValueError for features as `frechet_from_features` does, and
    for sizes that leave fewer than two.
    """
    a, b = _pair(features, reference, moments=True)
    rows = [x for x in (a, b) if not isinstance(x, Moments)]
    smallest = max(len(a) // 2, 2) if smallest is None else smallest
    sizes = np.unique(np.linspace(smallest, len(a), max(points, 1)).astype(np.int64))
    shares = sizes / len(a)
    enough = min(round(shares[0] * len(x)) for x in rows) >= 2
    if not (repeats >= 1 and len(sizes) >= 2 and smallest < len(a) and enough):
        raise ValueError(
            f"{points} points from {smallest} of {[len(x) for x in rows]} samples, {repeats} "
            "repeats: must be two sizes or more of two samples or more, and one repeat or more"
        )
    generator = np.random.default_rng(seed)
    fixed = _moments(b) if isinstance(b, Moments) else None

    def subset(x: np.ndarray, share: float):
        return _moments(x[generator.permutation(len(x))[: round(share * len(x))]], fast=True)

    distances = np.empty((len(sizes), repeats))
    for i, share in enumerate(shares):
        for j in range(repeats):
            part = subset(a, share)
            distances[i, j] = _combine(part, fixed or subset(b, share), fast=True)
    distances = distances.mean(1)
    slope, value = np.polyfit(1 / sizes, distances, 1)
    residual = distances - value - slope / sizes
    return Extrapolation(
        float(value), float(slope), sizes, distances, float(np.sqrt(np.mean(residual**2)))
    )


class KernelDistance(NamedTuple):
    """A squared maximum mean discrepancy, which may be negative, and its standard error."""

    value: float
    standard_error: float


def kernel_distance(
    a: Shaped[np.ndarray, "n d"],
    b: Shaped[np.ndarray, "m d"],
    *,
    block_size: int | None = None,
    seed: int = 0,
) -> KernelDistance:
    """KID and KVD: the unbiased estimate of MMD² with the kernel (x·y/d + 1)³.

    Bińkowski et al. 2018, section 4; the estimate is Gretton et al. 2012, equation 3. Its
    expectation does not depend on the numbers of samples, and is 0 for equal distributions.

    Without `block_size` all pairs are used, n·m in time, and the standard error is the jackknife's
    over the samples of both sets: right where the distributions differ, and somewhat too large (up
    to √2) where they are equal. With it, the sets are shuffled and cut into disjoint blocks of so
    many samples of each, linear in time; the value is the mean over blocks and the standard error
    comes from their spread. (Subsets drawn anew, as in the paper, have the same expectation, but
    overlap: the spread of their mean says nothing about other samples.)

    Memory: kernels of 1024 samples by all others. Of fewer than three samples the jackknife's
    standard error is NaN. Raises ValueError for features as
    `frechet_from_features` does, and for fewer than two blocks of two samples.
    """
    a, b = _pair(a, b)
    if block_size is None:
        return _mmd(a, b)
    blocks = min(len(a), len(b)) // max(block_size, 1)
    if block_size < 2 or blocks < 2:
        raise ValueError(
            f"block_size {block_size} of {len(a)} and {len(b)} samples: must be 2 or more, and "
            "leave two blocks or more"
        )
    generator = np.random.default_rng(seed)
    order_a, order_b = (
        generator.permutation(len(x))[: blocks * block_size].reshape(blocks, block_size)
        for x in (a, b)
    )
    values = [_mmd(a[i], b[j]).value for i, j in zip(order_a, order_b, strict=True)]
    return KernelDistance(
        float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))
    )


class PrecisionRecall(NamedTuple):
    """Shares from 0 to 1: of samples that look like references, of references that are covered."""

    precision: float
    recall: float


def precision_recall(
    features: Shaped[np.ndarray, "n d"],
    reference: Shaped[np.ndarray, "m d"],
    *,
    k: int = 3,
    block: int = 1024,
) -> PrecisionRecall:
    """Improved precision and recall of `features` (generated) against `reference` (real).

    Kynkäänniemi et al. 2019, equations 1 and 2: a sample lies on the manifold of a set if it is as
    close to one of the set's samples as that one's `k`-th nearest other sample is. Precision is the
    share of generated samples on the real manifold, recall that of real samples on the generated
    one. Both depend on the numbers of samples, which should be equal.

    Memory: tiles of `block` by `block` distances. Raises ValueError for features as
    `frechet_from_features` does, for k below 1 or not below the number of samples of each set,
    and for a block below 1.
    """
    a, b = _pair(features, reference)
    if not 1 <= k < min(len(a), len(b)) or block < 1:
        raise ValueError(
            f"k {k}, block {block}, {len(a)} and {len(b)} samples: k must be from 1 to below the "
            "samples, block 1 or more"
        )
    middle = b.mean(0)  # less to cancel in |x|² + |y|² - 2 x·y
    a, b = a - middle, b - middle

    def covered(points: np.ndarray, centres: np.ndarray) -> float:
        radii = _radii(centres, k, block)
        inside = np.zeros(len(points), bool)
        for i, j, distances in _tiles(points, centres, block):
            inside[i] |= (distances <= radii[j]).any(1)
        return float(inside.mean())

    return PrecisionRecall(covered(a, b), covered(b, a))


class InceptionScore(NamedTuple):
    """The mean over the splits, and their standard deviation (divided by the number of splits)."""

    value: float
    deviation: float


def inception_score(
    logits: Shaped[np.ndarray, "n classes"], *, splits: int = 10, seed: int | None = 0
) -> InceptionScore:
    """exp of the mean of KL(p(y|x) || p(y)), for each split of the samples.

    Salimans et al. 2016, section 4, with the deviation over the splits that is usually reported.
    From 1 to the number of classes; biased down where a split has few samples for the classes.
    Samples are shuffled by `seed` before they are split, since samples in the order of their
    prompts would give splits of few classes; None keeps the order. Raises ValueError for other
    shapes, logits that are not finite, and fewer samples than splits.
    """
    logits = _features(logits, "logits", least=1)
    if not 1 <= splits <= len(logits):
        raise ValueError(f"splits {splits}: must be from 1 to the {len(logits)} samples")
    if seed is not None:
        logits = logits[np.random.default_rng(seed).permutation(len(logits))]
    scores = []
    for part in np.array_split(_log_softmax(logits), splits):
        p = np.exp(part)
        marginal = p.mean(0)
        # A class of probability 0 throughout adds 0 log 0 = 0 to the entropy.
        entropy = -(marginal * np.log(np.where(marginal > 0, marginal, 1.0))).sum()
        scores.append(np.exp((p * part).sum(1).mean() + entropy))
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


class Interval(NamedTuple):
    """A statistic and a confidence interval for what it estimates.

    Attributes:
      value: of all samples, as measured.
      low, high: of the interval; need not contain the value, if that is biased.
      standard_error: the standard deviation of the replicates.
      bias: their mean minus the value. Of half samples, an estimate of the value's own bias.
      level: of the interval, such as 0.95.
    """

    value: float
    low: float
    high: float
    standard_error: float
    bias: float
    level: float


def bootstrap(
    statistic: Callable[..., float],
    *features: Shaped[np.ndarray, "_ d"],
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap interval of `statistic(*features)`, of one or more sets [n, d].

    Every set is resampled with replacement, on its own (Efron & Tibshirani 1993, chapter 13). For
    statistics without bias that repeated samples do not disturb: means, shares, scores a clip. The
    distances of this file are not: use `half_sampling`.

    Deterministic in `seed`. Raises ValueError for features as `frechet_from_features` does, for
    fewer than two replicates, and for a level that is not between 0 and 1.
    """
    sets = [_features(x, "features", least=2) for x in features]
    generator = np.random.default_rng(seed)

    def replicate() -> float:
        return statistic(*(x[generator.integers(len(x), size=len(x))] for x in sets))

    return _interval(statistic(*sets), replicate, replicates, level, shift=False)


def share_interval(count: int, total: int, level: float = 0.95) -> Interval:
    """Wilson's score interval of a share (1927), such as of samples that are right.

    Resampling says of 100% that it is certain; this does not. Raises ValueError for a count that is
    not from 0 to `total`, no total, and a level that is not between 0 and 1.
    """
    if not 0 <= count <= total or total < 1 or not 0 < level < 1:
        raise ValueError(
            f"{count} of {total}, level {level}: must be from 0 to a total of 1 or more, and in "
            "(0, 1)"
        )
    share, z = count / total, statistics.NormalDist().inv_cdf((1 + level) / 2)
    scale = 1 / (1 + z**2 / total)
    centre = scale * (share + z**2 / (2 * total))
    half = scale * z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    error = float(np.sqrt(share * (1 - share) / total))
    # At 0 and at 1 one end is that, up to rounding.
    low, high = min(centre - half, share), max(centre + half, share)
    return Interval(share, max(float(low), 0.0), min(float(high), 1.0), error, 0.0, level)


def half_sampling(
    statistic: Callable[..., float],
    *features: Shaped[np.ndarray, "_ d"],
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """An interval for what `statistic(*features)` of sets [n, d] tends to with ever more samples.

    A replicate is the statistic of a random half of each set, without replacement (the delete-d
    jackknife with d = n/2, Shao & Wu 1989). Around the value of all n samples, halves spread as
    that does around its expectation, and a bias of K/n doubles, so that the replicates' mean minus
    the value is the bias. The interval is the replicates' percentiles moved by twice the bias.

    Deterministic in `seed`. Raises ValueError as `bootstrap` does, and for fewer than four samples.
    """
    sets = [_features(x, "features", least=4) for x in features]
    generator = np.random.default_rng(seed)

    def replicate() -> float:
        return statistic(*(_half(x, generator) for x in sets))

    return _interval(statistic(*sets), replicate, replicates, level, shift=True)


def frechet_interval(
    features: Shaped[np.ndarray, "n d"],
    reference: Shaped[np.ndarray, "m d"] | Moments,
    *,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Interval:
    """`half_sampling` of the Fréchet distance, fast: for the distance of the distributions.

    A `reference` given as `Moments` is held fixed, and the interval is for the distance from
    exactly these moments; given as features [m, d] it is halved too.

    Why halves: the distance is biased up by K/n. The bootstrap's replicates have that bias twice,
    and more, as repetitions leave only 63% of the samples distinct. Measured coverage of 95%
    intervals, Gaussians in 32 dimensions with equal variances or variances 1/i, true distances
    from 0 to 3.9, n = m, 100 trials of 150 replicates or more each:

        interval                              n = d        n = 2d       n = 5d       n = 20d
        bootstrap, percentile                 0            0            0 - 0.05     0 - 0.70
        bootstrap, basic                      0 - 0.95     0.75 - 0.99  0.74 - 0.97  0.56 - 1
        bootstrap, moved by twice its bias    0 - 0.76     0.57 - 0.94  0.96 - 0.99  0.93 - 1
        this one                              0.13 - 0.94  0.93 - 1     0.94 - 1     0.93 - 1
        this one, reference fixed             0.08 - 1     0.11 - 1     0.92 - 1     0.94 - 1

    So have five samples or more a dimension, or take the interval as a rough guess. It covers more
    than 95% where the distributions are equal or nearly so; it then starts at 0.

    Deterministic in `seed`. Raises ValueError as `half_sampling` does.
    """
    a, b = _pair(features, reference, least=4, moments=True)
    generator = np.random.default_rng(seed)
    fixed = _moments(b) if isinstance(b, Moments) else None

    def replicate() -> float:
        part_a = _moments(_half(a, generator), fast=True)
        return _combine(part_a, fixed or _moments(_half(b, generator), fast=True), fast=True)

    value = _combine(_moments(a), fixed or _moments(b))
    interval = _interval(value, replicate, replicates, level, shift=True)
    return interval._replace(low=max(interval.low, 0.0), high=max(interval.high, 0.0))


def _features(x, name: str, least: int) -> Float[np.ndarray, "n d"]:
    x = np.asarray(x)
    if x.ndim != 2 or len(x) < least or not x.shape[1]:
        raise ValueError(f"{name} {list(x.shape)}: must be [n, d] with {least} rows or more")
    x = x.astype(np.float64, copy=False)
    if not np.isfinite(x).all():
        raise ValueError(f"{name} {list(x.shape)}: must be finite")
    return x


def _pair(a, b, least: int = 2, moments: bool = False):
    """Both sets checked; the second may be Moments if so said."""
    sets = [_features(a, "features", least)]
    passed = moments and isinstance(b, Moments)
    sets.append(b if passed else _features(b, "features", least))
    dims = [x.dim if isinstance(x, Moments) else x.shape[1] for x in sets]
    if dims[0] != dims[1]:
        raise ValueError(f"features of {dims[0]} and of {dims[1]} dimensions: must be equal")
    return sets


def _moments(x, fast: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Mean [d] and a factor F [r, d] of the covariance, FᵀF, of features or Moments."""
    if isinstance(x, Moments):
        return x.mean, _factor(x.covariance, x.dim)
    mean = x.mean(0)
    factor = (x - mean) / np.sqrt(len(x) - 1)
    if len(x) <= x.shape[1]:
        return mean, factor
    if not fast:
        return mean, np.linalg.qr(factor, mode="r")
    covariance = factor.T @ factor
    try:
        return mean, np.linalg.cholesky(covariance).T
    except np.linalg.LinAlgError:  # features that depend on each other, or never change
        return mean, _factor(covariance, len(covariance))


def _factor(covariance, dim: int) -> Float[np.ndarray, "r d"]:
    covariance = np.asarray(covariance, np.float64)
    if covariance.shape != (dim, dim) or not np.isfinite(covariance).all():
        raise ValueError(f"covariance {list(covariance.shape)}: must be [{dim}, {dim}] and finite")
    scale = np.abs(covariance).max()
    if np.abs(covariance - covariance.T).max() > 1e-6 * scale:
        raise ValueError("covariance: must be symmetric")
    eigenvalues, vectors = np.linalg.eigh((covariance + covariance.T) / 2)
    if eigenvalues[0] < -1e-6 * scale:
        raise ValueError(f"covariance: must have no eigenvalue below 0, has {eigenvalues[0]:.3g}")
    kept = eigenvalues > dim * np.finfo(np.float64).eps * eigenvalues[-1]
    return (vectors[:, kept] * np.sqrt(eigenvalues[kept])).T


def _combine(a, b, fast: bool = False) -> float:
    """The distance, of two means and factors [p, d] and [q, d] of covariances."""
    (mean_a, left), (mean_b, right) = a, b
    cross = left @ right.T
    if fast:  # singular values below 1e-8 of the largest drown in rounding
        gram = cross @ cross.T if len(left) < len(right) else cross.T @ cross
        roots = np.sqrt(np.clip(np.linalg.eigvalsh(gram), 0, None))
    else:
        roots = np.linalg.svd(cross, compute_uv=False)
    value = ((mean_a - mean_b) ** 2).sum() + (left**2).sum() + (right**2).sum() - 2 * roots.sum()
    return max(float(value), 0.0)  # below it by rounding only


def _half(x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return x[generator.permutation(len(x))[: len(x) // 2]]


def _interval(
    value: float, replicate: Callable[[], float], replicates: int, level: float, shift: bool
) -> Interval:
    if replicates < 2 or not 0 < level < 1:
        raise ValueError(
            f"replicates {replicates}, level {level}: must be 2 or more, and between 0 and 1"
        )
    draws = np.array([float(replicate()) for _ in range(replicates)])
    bias = float(draws.mean() - value)
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2]) - 2 * bias * shift
    return Interval(
        float(value), float(low), float(high), float(draws.std(ddof=1)), bias, float(level)
    )


def _mmd(a: np.ndarray, b: np.ndarray) -> KernelDistance:
    """The unbiased estimate over all pairs, and its jackknife standard error."""
    n, m = len(a), len(b)
    rows_a, _ = _kernel_sums(a, a, same=True)
    rows_b, _ = _kernel_sums(b, b, same=True)
    rows, columns = _kernel_sums(a, b)

    def estimate(within_a, within_b, between, n: int, m: int):
        return within_a / (n * (n - 1)) + within_b / (m * (m - 1)) - 2 * between / (n * m)

    total_a, total_b, total = rows_a.sum(), rows_b.sum(), rows.sum()
    variance = np.nan
    if min(n, m) > 2:
        without_a = estimate(total_a - 2 * rows_a, total_b, total - rows, n - 1, m)
        without_b = estimate(total_a, total_b - 2 * rows_b, total - columns, n, m - 1)
        variance = (n - 1) * without_a.var() + (m - 1) * without_b.var()
    value = estimate(total_a, total_b, total, n, m)
    return KernelDistance(float(value), float(np.sqrt(variance)))


def _kernel_sums(a: np.ndarray, b: np.ndarray, same: bool = False):
    """Sums of (x·y/d + 1)³ over b for each of a, and over a for each of b; `same` omits pairs."""
    rows, columns = np.empty(len(a)), np.zeros(len(b))
    for start in range(0, len(a), _KERNEL_ROWS):
        kernel = (a[start : start + _KERNEL_ROWS] @ b.T / a.shape[1] + 1) ** 3
        if same:
            np.fill_diagonal(kernel[:, start:], 0)
        rows[start : start + _KERNEL_ROWS] = kernel.sum(1)
        columns += kernel.sum(0)
    return rows, columns


def _tiles(
    a: np.ndarray, b: np.ndarray, block: int
) -> Iterator[tuple[slice, slice, Float[np.ndarray, "i j"]]]:
    """Squared distances of a part of a from a part of b, and where the parts lie."""
    norms_a, norms_b = (a**2).sum(1), (b**2).sum(1)
    for start in range(0, len(a), block):
        i = slice(start, start + block)
        for other in range(0, len(b), block):
            j = slice(other, other + block)
            norms = norms_a[i, None] + norms_b[j]
            squares = norms - 2 * a[i] @ b[j].T
            squares[squares < _ROUNDING * norms] = 0
            yield i, j, squares


def _radii(x: np.ndarray, k: int, block: int) -> Float[np.ndarray, "n"]:
    """The squared distance of each sample from its k-th nearest other."""
    nearest = np.full((len(x), k), np.inf)
    for i, j, squares in _tiles(x, x, block):
        if i == j:
            np.fill_diagonal(squares, np.inf)
        nearest[i] = np.partition(np.concatenate([nearest[i], squares], 1), k - 1)[:, :k]
    return nearest.max(1)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
