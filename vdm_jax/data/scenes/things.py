"""The pictures of the things that scenes show, and how they are drawn at any place and size."""

import functools
from importlib import resources

import numpy as np
from jaxtyping import Float, Int, UInt8
from PIL import Image

from vdm_jax.data.scenes.grammar import SPRITES, THINGS, Thing
from vdm_jax.data.shapes import COLORS, SHAPES, coverage

SIDE = 48  # pixels of a picture's sides
# Places are rounded to this part of a picture's pixel. Then all sums below are of numbers that
# float32 holds exactly, and a matrix product gives the same bytes on every machine.
_PARTS = 64


@functools.cache
def pictures() -> Float[np.ndarray, "n s s 4"]:
    """The pictures of `grammar.THINGS`: red, green and blue times coverage, and coverage, whole
    numbers from 0 to 255. A thing touches two opposite sides of its picture."""
    drawn = [_sprite(noun) for noun in SPRITES]
    for thing in THINGS[len(SPRITES) :]:
        drawn.append(_shape(thing))
    stacked = np.stack(drawn).astype(np.float32)
    alpha = stacked[..., 3:]
    return np.concatenate([np.round(stacked[..., :3] * alpha / 255), alpha], -1)


def _sprite(noun: str) -> UInt8[np.ndarray, "s s 4"]:
    file = resources.files("vdm_jax.data.scenes") / "sprites" / f"{noun}.png"
    with file.open("rb") as stream, Image.open(stream) as image:
        return np.asarray(image.convert("RGBA"))


def _shape(thing: Thing) -> UInt8[np.ndarray, "s s 4"]:
    middle, index = np.full((1, 2), SIDE / 2), np.array([SHAPES.index(thing.object)])
    mask = coverage(index, middle, np.array([SIDE / 2]), SIDE)[0]
    color = np.broadcast_to(np.array(COLORS[thing.color], np.uint8), (SIDE, SIDE, 3))
    return np.concatenate([color, np.round(255 * mask).astype(np.uint8)[..., None]], -1)


@functools.cache
def extents() -> Float[np.ndarray, "n 4"]:
    """The box (left, top, right, bottom) of every thing in its picture, from 0 to 1."""
    boxes = []
    for alpha in pictures()[..., 3] >= 128:
        columns, rows = np.flatnonzero(alpha.any(0)), np.flatnonzero(alpha.any(1))
        boxes.append((columns[0], rows[0], columns[-1] + 1, rows[-1] + 1))
    return np.array(boxes, np.float32) / SIDE


def resample(
    picture: Float[np.ndarray, "s s c"], centre: Float[np.ndarray, "f 2"], diameter: float
) -> tuple[Float[np.ndarray, "f p p c"], Int[np.ndarray, "f 2"]]:
    """A picture at a place and size: each pixel is the mean over the area that it covers.

    Args:
      picture: whole numbers up to 255.
      centre: its middle (x, y) in each of f frames, in pixels.
      diameter: the side that it is drawn with, in pixels.

    Returns:
      Patches of p pixels, the diameter rounded up plus 1, and the x and y of their first pixel.
    """
    corner = np.floor(centre - diameter / 2).astype(np.int64)
    pixels = int(np.ceil(diameter)) + 1
    start = corner - (centre - diameter / 2)  # [f, 2], from -1 to 0
    scale = len(picture) / diameter
    edges = (start[..., None] + np.arange(pixels + 1)) * scale  # in pixels of the picture
    edges = np.round(edges * _PARTS).astype(np.float32) / _PARTS
    covered = np.clip(edges[..., None] - np.arange(len(picture), dtype=np.float32), 0, 1)
    weights, widths = np.diff(covered, axis=2), np.diff(edges, axis=2)
    across, down = np.moveaxis(weights, 1, 0)  # [f, p, s]
    s, _, c = picture.shape
    rows = (down @ picture.reshape(s, s * c)).reshape(len(centre), pixels, s, c)
    rows = np.ascontiguousarray(np.moveaxis(rows, 2, 1)).reshape(len(centre), s, pixels * c)
    patches = np.moveaxis((across @ rows).reshape(len(centre), pixels, pixels, c), 1, 2)
    return patches / (widths[:, 1, :, None] * widths[:, 0, None])[..., None], corner
