"""Images of any size as the square that Stable Video Diffusion's image encoder takes: blurred,
resized to the square whatever their proportions, and normalised, on the device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm_jax.models.vision import resizing
from vdm_jax.models.vision.preprocessing import DEVIATION, MEAN


@dataclasses.dataclass(frozen=True, kw_only=True)
class Squash:
    """A Gaussian blur against aliasing, bicubic interpolation between the corners, and
    normalisation of each channel, as in the published pipeline.

    Attributes:
      size: height and width of the result.
      mean, deviation: of each channel of images in [0, 1].
    """

    size: int = 224
    mean: tuple[float, float, float] = MEAN
    deviation: tuple[float, float, float] = DEVIATION

    def __call__(self, images: Float[Array, "n h w 3"]) -> Float[Array, "n s s 3"]:
        """images: in [-1, 1]."""
        rows, columns = (_resizing(length, self.size) for length in images.shape[1:3])
        exact = jax.lax.Precision.HIGHEST
        square = jnp.einsum("sh,rw,nhwc->nsrc", rows, columns, images, precision=exact)
        mean, deviation = (jnp.asarray(each, jnp.float32) for each in (self.mean, self.deviation))
        return ((square + 1) / 2 - mean) / deviation


@functools.lru_cache(maxsize=16)
def _resizing(length: int, size: int) -> Float[np.ndarray, "{size} {length}"]:
    """The matrix that blurs a row of pixels and resizes it."""
    cubic = resizing.matrix(length, size, kind="cubic", corners=True)
    return (cubic @ _blur(length, size)).astype(np.float32)


def _blur(length: int, size: int) -> Float[np.ndarray, "{length} {length}"]:
    """Each pixel as a mean of its neighbours, which are mirrored at the ends."""
    sigma = max((length / size - 1) / 2, 0.001)
    taps = int(max(4 * sigma, 3))
    taps += taps % 2 == 0
    offsets = np.arange(taps) - taps // 2
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    matrix = np.zeros((length, length))
    for offset, weight in zip(offsets, weights / weights.sum(), strict=True):
        places = np.abs(np.arange(length) + offset)
        places = np.where(places >= length, 2 * (length - 1) - places, places)
        np.add.at(matrix, (np.arange(length), np.clip(places, 0, length - 1)), weight)
    return matrix
