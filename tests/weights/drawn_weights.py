"""Weights that a recording and the test that reads it draw alike, so that no file holds them.

NumPy only: recordings run where JAX is not installed.
"""

import zlib
from collections.abc import Mapping, Sequence

import numpy as np


def draw(name: str, shape: Sequence[int]) -> np.ndarray:
    """A tensor of a published name, float32: matrices and kernels keep the size of their inputs,
    scales of normalisations are near 1."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    values = 2 * rng.random(tuple(shape)) - 1  # raw doubles are the same in every version of NumPy
    if len(shape) > 1:
        values *= np.sqrt(3 / np.prod(shape[1:]))
    elif name.endswith(".weight"):
        values = 1 + 0.3 * values
    else:
        values *= 0.3
    return values.astype(np.float32)


def draw_all(
    shapes: Mapping[str, Sequence[int]], factors: Mapping[str, float] | None = None
) -> dict[str, np.ndarray]:
    """Tensors by their published names.

    factors: by which tensors are multiplied whose names begin so. Where features are small the
    epsilon of a normalisation matters.
    """
    drawn = {name: draw(name, shape) for name, shape in shapes.items()}
    for begin, factor in (factors or {}).items():
        for name in drawn:
            if name.startswith(begin):
                drawn[name] = drawn[name] * np.float32(factor)
    return drawn


def picture(height: int, width: int) -> np.ndarray:
    """An image, uint8 (height, width, 3), with detail at several scales."""
    y, x, c = np.mgrid[:height, :width, :3]
    return ((x * x // 7 + 13 * y + 5 * (x * y // 11) + 31 * c) % 256).astype(np.uint8)
