"""Kernel distance, precision and recall, Inception score, of features [n, d], in float64.

One row a clip or a frame, on the host. The Fréchet distance is in `frechet.py`.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped

from vdm_jax.evaluation.moments import check_features, check_pair

_ROUNDING = 1e-12  # squared distances below it, relative to the squared norms, are 0
_KERNEL_ROWS = 1024


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
    a, b = check_pair(a, b)
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
    a, b = check_pair(features, reference)
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
    logits = check_features(logits, "logits", least=1)
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
