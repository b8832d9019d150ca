"""Mean and covariance of features in one pass, in float64, merged over batches and hosts."""

from collections.abc import Mapping
from typing import Self

import numpy as np
from jaxtyping import Float, Shaped

_KEYS = ("count", "mean", "scatter")


class Moments:
    """Mean and covariance of the features seen so far.

    Kept are the count n, the mean and the scatter matrix, the sum of (x - mean)(x - mean)ᵀ. Batches
    and whole sets are joined by the pairwise formula of Chan, Golub & LeVeque 1983, equation 2.1,
    which never subtracts large sums: the order of merging changes float64 rounding only.

        moments = Moments(400)
        for batch in batches:
            moments.update(batch)
        moments.mean, moments.covariance

    Attributes:
      count: of the samples seen.
    """

    def __init__(self, dim: int):
        """Of no samples yet. Raises ValueError where `dim`, the length of a feature, is below 1."""
        if dim < 1:
            raise ValueError(f"dim {dim}: must be 1 or more")
        self.count = 0
        self._mean = np.zeros(dim)
        self._scatter = np.zeros((dim, dim))

    @classmethod
    def of(cls, features: Shaped[np.ndarray, "n d"]) -> Self:
        """The moments of one array; errors are those of `update`."""
        features = np.asarray(features)
        if features.ndim != 2:
            raise ValueError(f"features {list(features.shape)}: must be [n, d]")
        moments = cls(features.shape[1])
        moments.update(features)
        return moments

    @property
    def dim(self) -> int:
        """The length d of a feature."""
        return len(self._mean)

    def update(self, features: Shaped[np.ndarray, "n d"]) -> None:
        """Adds samples, in place: features [n, d] of any real dtype; n may be 0.

        Raises ValueError where they have another shape or are not finite; nothing is then added.
        """
        features = np.asarray(features)
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise ValueError(f"features {list(features.shape)}: must be [n, {self.dim}]")
        features = features.astype(np.float64)  # a copy, which is centred below
        bad = np.flatnonzero(~np.isfinite(features).all(1))
        if bad.size:
            raise ValueError(f"features: {bad.size} of {len(features)} not finite, first: {bad[0]}")
        if len(features):
            mean = features.mean(0)
            features -= mean
            self._join(len(features), mean, features.T @ features)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets together, as a new value.

        Raises ValueError where the lengths of the features differ.
        """
        if other.dim != self.dim:
            raise ValueError(f"features of {self.dim} and of {other.dim} dimensions: must be equal")
        merged = self.from_dict(self.to_dict())
        if other.count:
            merged._join(other.count, other._mean, other._scatter)
        return merged

    def _join(self, count: int, mean: np.ndarray, scatter: np.ndarray) -> None:
        total = self.count + count
        delta = mean - self._mean
        self._mean += delta * (count / total)
        self._scatter += scatter + np.outer(delta, delta) * (self.count * count / total)
        self.count = total

    @property
    def mean(self) -> Float[np.ndarray, "d"]:
        """float64 [d]. Raises ValueError without any sample."""
        self._require(1, "a mean")
        return self._mean.copy()

    @property
    def covariance(self) -> Float[np.ndarray, "d d"]:
        """float64 [d, d], divided by n - 1. Raises ValueError with fewer than two samples."""
        self._require(2, "a covariance")
        return self._scatter / (self.count - 1)

    def _require(self, least: int, what: str) -> None:
        if self.count < least:
            raise ValueError(f"{self.count} samples: {what} needs at least {least}")

    def to_dict(self) -> dict[str, np.ndarray]:
        """What another host needs, as arrays: count int64 [], mean and scatter float64.

        JAX without `jax_enable_x64` would round them to 32 bits on the way (`from_dict` notices):
        send `array.view(numpy.uint8)` through its collectives.
        """
        return {
            "count": np.asarray(self.count, np.int64),
            "mean": self._mean.copy(),
            "scatter": self._scatter.copy(),
        }

    @classmethod
    def from_dict(cls, arrays: Mapping[str, np.ndarray]) -> Self:
        """The inverse of `to_dict`.

        Raises ValueError for other names, shapes that do not fit, a mean or scatter that is not
        float64 or not finite, and a count below 0.
        """
        if set(arrays) != set(_KEYS):
            raise ValueError(f"arrays {sorted(arrays)}: must be {sorted(_KEYS)}")
        count, mean, scatter = (np.asarray(arrays[key]) for key in _KEYS)
        if mean.ndim != 1 or scatter.shape != (mean.size, mean.size) or count.ndim:
            shapes = [list(array.shape) for array in (count, mean, scatter)]
            raise ValueError(f"count, mean and scatter {shapes}: must be [], [d] and [d, d]")
        if not mean.dtype == scatter.dtype == np.float64:
            raise ValueError(f"mean {mean.dtype}, scatter {scatter.dtype}: must be float64")
        if not (np.isfinite(mean).all() and np.isfinite(scatter).all() and count >= 0):
            raise ValueError(f"count {count}: must be 0 or more, mean and scatter finite")
        moments = cls(mean.size)
        moments.count = int(count)
        moments._mean, moments._scatter = mean.copy(), scatter.copy()
        return moments


def check_features(x: Shaped[np.ndarray, "n d"], name: str, least: int) -> Float[np.ndarray, "n d"]:
    """The features in float64. Raises ValueError for another rank, fewer rows than `least`, and
    values that are not finite."""
    x = np.asarray(x)
    if x.ndim != 2 or not x.shape[1]:
        raise ValueError(
            f"{name} {list(x.shape)}: must be [n, d], a row a clip, with {least} rows or more"
        )
    if len(x) < least:
        raise ValueError(
            f"{name} of {len(x)} clip{'s' * (len(x) != 1)}: must be of {least} or more; give more "
            "videos, or a larger --num_samples"
        )
    x = x.astype(np.float64, copy=False)
    if not np.isfinite(x).all():
        raise ValueError(f"{name} {list(x.shape)}: must be finite")
    return x


def check_pair(a, b, least: int = 2, moments: bool = False):
    """Both sets [n, d] and [m, d], checked; the second may be Moments if so said. Raises ValueError
    as `check_features` does, and for unequal d."""
    sets = [check_features(a, "features", least)]
    passed = moments and isinstance(b, Moments)
    sets.append(b if passed else check_features(b, "features", least))
    dims = [x.dim if isinstance(x, Moments) else x.shape[1] for x in sets]
    if dims[0] != dims[1]:
        raise ValueError(f"features of {dims[0]} and of {dims[1]} dimensions: must be equal")
    return sets
