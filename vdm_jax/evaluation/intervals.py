"""How sure a figure is: intervals by resampling, and of shares."""

import statistics
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped

from vdm_jax.evaluation.moments import check_features


class Interval(NamedTuple):
    """A statistic and a confidence interval for what it estimates.

    Attributes:
      value: of all samples, as measured.
      low, high: of the interval; need not contain the value, if that is biased (`corrected`).
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

    @property
    def corrected(self) -> float:
        """The value without its bias, which an interval from `half_sampling` is for."""
        return self.value - self.bias


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
    Fréchet distance, kernel distance, precision and recall are not: use `half_sampling`.

    Deterministic in `seed`. Raises ValueError for features as `frechet_from_features` does, for
    fewer than two replicates, and for a level that is not between 0 and 1.
    """
    sets = [check_features(x, "features", least=2) for x in features]
    generator = np.random.default_rng(seed)

    def replicate() -> float:
        return statistic(*(x[generator.integers(len(x), size=len(x))] for x in sets))

    return interval_of(statistic(*sets), replicate, replicates, level, shift=False)


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
    sets = [check_features(x, "features", least=4) for x in features]
    generator = np.random.default_rng(seed)

    def replicate() -> float:
        return statistic(*(random_half(x, generator) for x in sets))

    return interval_of(statistic(*sets), replicate, replicates, level, shift=True)


def random_half(
    x: Shaped[np.ndarray, "n d"], generator: np.random.Generator
) -> Shaped[np.ndarray, "n//2 d"]:
    """Half of the rows, without replacement."""
    return x[random_part(len(x), len(x) // 2, generator)]


def random_part(
    total: int, count: int, generator: np.random.Generator
) -> Int[np.ndarray, "{count}"]:
    """`count` of the numbers below `total`, without replacement."""
    return generator.permutation(total)[:count]


def interval_of(
    value: float, replicate: Callable[[], float], replicates: int, level: float, shift: bool
) -> Interval:
    """The percentiles of as many draws of `replicate()`, moved by twice their bias with `shift`.

    Raises ValueError for fewer than two replicates, and a level that is not between 0 and 1.
    """
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
