"""Matrices that interpolate a row of pixels, as published networks resize images and features.

No pixels are averaged where a row becomes shorter. Two matrices resize an image, one for each side.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

_CUBIC = -0.75  # of the cubic kernel, as in the published code


@functools.lru_cache(maxsize=64)
def matrix(
    length: int, size: int, *, kind: str = "linear", corners: bool = False
) -> Float[np.ndarray, "{size} {length}"]:
    """What interpolates `size` values of a row of `length`.

    Args:
      kind: linear, by the two pixels around a place, or cubic, by the four.
      corners: whether the first and the last pixel stay in their places; else the edges of the
        row do, and a pixel is the middle of its part.
    """
    place = np.arange(size)
    if corners:
        at = place * (length - 1) / max(size - 1, 1)
    else:
        at = (place + 0.5) * length / size - 0.5
    if kind == "linear":
        at = np.clip(at, 0, length - 1)
    first = np.floor(at).astype(int)
    found = np.zeros((size, length))
    for offset in (0, 1) if kind == "linear" else (-1, 0, 1, 2):
        distance = np.abs(at - (first + offset))
        weight = 1 - distance if kind == "linear" else _cubic(distance)
        np.add.at(found, (place, np.clip(first + offset, 0, length - 1)), weight)
    return found


def resize(
    images: Float[Array, "n h w c"],
    size: tuple[int, int],
    *,
    kind: str = "linear",
    corners: bool = False,
) -> Float[Array, "n h2 w2 c"]:
    """Images of `size` (height, width); see `matrix`."""
    rows, columns = (
        jnp.asarray(matrix(length, wanted, kind=kind, corners=corners), images.dtype)
        for length, wanted in zip(images.shape[1:3], size, strict=True)
    )
    exact = jax.lax.Precision.HIGHEST
    return jnp.einsum("sh,rw,nhwc->nsrc", rows, columns, images, precision=exact)


def _cubic(distance: Float[np.ndarray, "n"]) -> Float[np.ndarray, "n"]:
    """The kernel of Keys 1981 at distances of at most 2."""
    near = ((_CUBIC + 2) * distance - (_CUBIC + 3)) * distance**2 + 1
    far = _CUBIC * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, far)
