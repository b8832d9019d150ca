"""Textured backgrounds: each is a random field of its own grain, coloured by a ramp of its own."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int


class Background(NamedTuple):
    """A texture.

    Attributes:
      ramp: colours, equally spaced, that field values from 0 to 1 are mapped to.
      field: draws a field, [size, size] in [0, 1], from (rng, size).
    """

    ramp: tuple[tuple[int, int, int], ...]
    field: Callable[[np.random.Generator, int], Float[np.ndarray, "h w"]]


def draw(
    name: str, rng: np.random.Generator, size: int
) -> tuple[Float[np.ndarray, "h w"], Float[np.ndarray, "h w 3"]]:
    """A background's field, and its pixels from 0 to 255."""
    field = BACKGROUNDS[name].field(rng, size)
    return field, colored(np.asarray(BACKGROUNDS[name].ramp, np.float32), field)


def colored(
    ramp: Float[np.ndarray, "n 3"], field: Float[np.ndarray, "*shape"]
) -> Float[np.ndarray, "*shape 3"]:
    """The colours of a ramp at field values from 0 to 1, linear between its entries."""
    at = np.clip(field, 0, 1) * np.float32(len(ramp) - 1)
    low = np.minimum(at.astype(np.int32), len(ramp) - 2)
    return ramp[low] + (at - low)[..., None] * (ramp[low + 1] - ramp[low])


def _noise(rng: np.random.Generator, size: int, rows: float, columns: float) -> np.ndarray:
    """Smooth noise in [0, 1] with about this many bumps from top to bottom and left to right."""
    (y, fy), (x, fx) = (_cells(rng, size, count) for count in (rows, columns))
    lattice = rng.random((y[-1] + 2, x[-1] + 2), np.float32)
    across = lattice[:, x] + fx * (lattice[:, x + 1] - lattice[:, x])
    return across[y] + fy[:, None] * (across[y + 1] - across[y])


def _cells(
    rng: np.random.Generator, size: int, count: float
) -> tuple[Int[np.ndarray, "size"], Float[np.ndarray, "size"]]:
    """For every pixel along an axis its cell of the lattice, and how far it is from its start."""
    at = np.arange(size, dtype=np.float32) * np.float32(count / size) + rng.random(None, np.float32)
    cell = at.astype(np.int32)
    part = at - cell
    return cell, part * part * (3 - 2 * part)


def _stretched(field: np.ndarray, gain: float) -> np.ndarray:
    """Contrast about one half: sums of noise seldom reach 0 and 1."""
    return np.clip(np.float32(gain) * (field - np.float32(0.5)) + np.float32(0.5), 0, 1)


def _meadow(rng: np.random.Generator, size: int) -> np.ndarray:
    return _stretched(0.7 * _noise(rng, size, 9, 26) + 0.3 * _noise(rng, size, 4, 4), 1.5)


def _sea(rng: np.random.Generator, size: int) -> np.ndarray:
    return _stretched(0.8 * _noise(rng, size, 20, 5) + 0.2 * _noise(rng, size, 3, 3), 1.5)


def _desert(rng: np.random.Generator, size: int) -> np.ndarray:
    return _stretched(0.75 * _noise(rng, size, 7, 2.5) + 0.25 * _noise(rng, size, 20, 20), 1.4)


def _sky(rng: np.random.Generator, size: int) -> np.ndarray:
    clouds = 0.65 * _noise(rng, size, 4, 2.5) + 0.35 * _noise(rng, size, 9, 6)
    height = np.linspace(0, 0.3, size, dtype=np.float32)[:, None]
    return np.clip(height + np.maximum(clouds - np.float32(0.48), 0) * np.float32(2.6), 0, 1)


def _night(rng: np.random.Generator, size: int) -> np.ndarray:
    field = np.float32(0.4) * _noise(rng, size, 3, 3)
    count = size * size // 110
    rows, columns = (rng.integers(0, size, count) for _ in range(2))
    field[rows, columns] = np.float32(0.75) + np.float32(0.25) * rng.random(count, np.float32)
    return field


def _brick(rng: np.random.Generator, size: int) -> np.ndarray:
    height, width = size // 8, size // 4
    y, x = np.arange(size) + rng.integers(height), np.arange(size) + rng.integers(width)
    course = y // height
    along = x + (course % 2)[:, None] * (width // 2)
    tones = rng.random((course[-1] + 1, int(along.max()) // width + 1), np.float32)
    tone = tones[course[:, None], along // width]
    field = 0.4 + 0.6 * (0.75 * tone + 0.25 * _noise(rng, size, 24, 24))
    mortar = (y % height == 0)[:, None] | (along % width == 0)
    return np.where(mortar, np.float32(0), field).astype(np.float32)


def _wood(rng: np.random.Generator, size: int) -> np.ndarray:
    height = size // 5
    y = np.arange(size) + rng.integers(height)
    tone = rng.random(y[-1] // height + 1, np.float32)[y // height]
    grain = _noise(rng, size, 26, 3)
    field = 0.25 + 0.75 * (0.4 * tone[:, None] + 0.6 * grain)
    return np.where((y % height == 0)[:, None], np.float32(0), field).astype(np.float32)


def _snow(rng: np.random.Generator, size: int) -> np.ndarray:
    return _stretched(0.7 * _noise(rng, size, 6, 6) + 0.3 * _noise(rng, size, 18, 18), 1.5)


def _road(rng: np.random.Generator, size: int) -> np.ndarray:
    return _stretched(0.7 * _noise(rng, size, 24, 24) + 0.3 * _noise(rng, size, 8, 8), 1.5)


def _forest(rng: np.random.Generator, size: int) -> np.ndarray:
    return _stretched(0.65 * _noise(rng, size, 11, 11) + 0.35 * _noise(rng, size, 5, 5), 1.8)


# By the names of `grammar.BACKGROUNDS`.
BACKGROUNDS: dict[str, Background] = {
    "meadow": Background(((62, 128, 34), (98, 165, 48), (146, 204, 84)), _meadow),
    "sea": Background(((12, 66, 128), (28, 104, 166), (84, 164, 204)), _sea),
    "desert": Background(((212, 178, 106), (232, 204, 136), (250, 232, 176)), _desert),
    "sky": Background(((98, 158, 240), (150, 194, 248), (248, 250, 253)), _sky),
    "night": Background(((8, 10, 30), (24, 22, 58), (60, 58, 96), (248, 244, 216)), _night),
    "brick": Background(((196, 184, 172), (140, 60, 44), (172, 78, 56), (192, 98, 74)), _brick),
    "wood": Background(((70, 42, 22), (116, 74, 38), (176, 124, 72)), _wood),
    "snow": Background(((206, 216, 234), (232, 238, 246), (252, 253, 255)), _snow),
    "road": Background(((86, 86, 90), (122, 122, 124), (160, 158, 156)), _road),
    "forest": Background(((8, 32, 18), (22, 60, 30), (48, 94, 46)), _forest),
}
