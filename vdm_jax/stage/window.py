"""Which part of a clip of the data an example is made from.

The workers of the data pipeline read by it, and they start without JAX: this module needs numpy
only.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8


class Reach(NamedTuple):
    """How far what is learned at one place depends on the clip, along one axis.

    Attributes:
      grid: frames or pixels of the stage that become one of the low-resolution video.
      before, after: how many frames or pixels of the stage's before the place, and after it.
    """

    grid: int = 1
    before: int = 0
    after: int = 0


Reaches = tuple[Reach, Reach, Reach]
AT_THE_PLACE: Reaches = (Reach(), Reach(), Reach())
Span = tuple[int, int]  # the first frame, row or column, and how many


@dataclasses.dataclass(frozen=True)
class Part:
    """Some frames of a clip, and a box in each.

    Attributes:
      frames: their numbers, ascending.
      rows, columns: of the box.
    """

    frames: tuple[int, ...]
    rows: Span
    columns: Span

    def mirrored(self, width: int) -> "Part":
        """The part of a clip of this width that, mirrored, is this part of the mirrored clip."""
        left, count = self.columns
        return dataclasses.replace(self, columns=(width - left - count, count))

    def reversed(self, length: int) -> "Part":
        """The part of a clip of this length that, backwards, is this part of the clip backwards."""
        frames = tuple(length - 1 - frame for frame in reversed(self.frames))
        return dataclasses.replace(self, frames=frames)

    def box(self, frames: UInt8[np.ndarray, "f h w c"]) -> UInt8[np.ndarray, "f h2 w2 c"]:
        """The box of whole frames."""
        (top, height), (left, width) = self.rows, self.columns
        return frames[:, top : top + height, left : left + width]

    def of(self, clip: UInt8[np.ndarray, "f h w c"]) -> UInt8[np.ndarray, "f2 h2 w2 c"]:
        """The part of a whole clip."""
        return self.box(clip[list(self.frames)])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Reading:
    """What is read of a clip of the data for one example of a stage.

    Frames are chosen first: every k-th, so that the stage's clip spans the data's, or with
    `strides` a drawn start and a drawn stride. Of the stage's clip a crop is drawn, and a window
    around it is read. The window begins on the grid of the low-resolution video and has all that
    the crop depends on: whatever the stage makes of the window is, inside of the crop, what it
    makes of the whole clip.

    Attributes:
      data_shape: (f, h, w) of the data's clips.
      shape: (f, h, w) of the stage's; height and width are divisors of the data's.
      strides: steps in time at which frames are taken; (): the stage's clip spans the data's.
      data_fps: frames a second of the data's clips; 0 = not known.
      crop: (f, h, w) of what is learned of the stage's clip.
      reach: of the frames, rows and columns.
    """

    data_shape: tuple[int, int, int]
    shape: tuple[int, int, int]
    strides: tuple[int, ...] = ()
    data_fps: float = 0.0
    crop: tuple[int, int, int]
    reach: Reaches = AT_THE_PLACE

    @property
    def window(self) -> tuple[int, int, int]:
        """(f, h, w) of the window, in the stage's frames and pixels."""
        return tuple(
            min(whole, reach.grid * _most(crop, reach))
            for whole, crop, reach in zip(self.shape, self.crop, self.reach, strict=True)
        )

    @property
    def video_shape(self) -> tuple[int, int, int]:
        """(f, h, w) of what is read: the window, in the data's pixels."""
        return tuple(w * s for w, s in zip(self.window, (1, *self.scale), strict=True))

    @property
    def scale(self) -> tuple[int, int]:
        """Rows and columns of the data's clips that become one of the stage's."""
        return self.data_shape[1] // self.shape[1], self.data_shape[2] // self.shape[2]

    @property
    def crops(self) -> bool:
        """Whether an example is a part of the stage's clip; its place is drawn."""
        return self.crop != self.shape

    @property
    def whole(self) -> bool:
        """Whether the data's clips are read as they are, and nothing is drawn."""
        return not self.crops and not self.strides and self.shape[0] == self.data_shape[0]

    @property
    def entries(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of what `draw` gives beside the part, by its name in the batch.

        crop_place: (frame, row, column) of the crop in its window, in the stage's pixels.
        fps: frames a second, where several strides are drawn from.
        """
        found = {}
        if self.crops:
            found["crop_place"] = ((3,), np.dtype(np.int32))
        if len(self.strides) > 1:
            found["fps"] = ((), np.dtype(np.float32))
        return found

    def draw(self, rng: np.random.Generator) -> tuple[Part, dict[str, np.ndarray]]:
        """A part of a clip of the data, and the values of `entries`."""
        frames, every, first = self.shape[0], self.data_shape[0] // self.shape[0], 0
        if self.strides:
            every = int(rng.choice(self.strides))
            first = int(rng.integers(self.data_shape[0] - (frames - 1) * every))
        spans, place = [(0, whole) for whole in self.shape], [0, 0, 0]
        if self.crops:
            for axis, (whole, crop) in enumerate(zip(self.shape, self.crop, strict=True)):
                at = int(rng.integers(whole - crop + 1))
                spans[axis], place[axis] = self._around(axis, at)
        (start, count), *box = spans
        rows, columns = ((at * s, n * s) for (at, n), s in zip(box, self.scale, strict=True))
        chosen = tuple(first + every * (start + frame) for frame in range(count))
        fps = np.array(self.data_fps / every, np.float32)
        values = {"crop_place": np.array(place, np.int32), "fps": fps}
        return Part(chosen, rows, columns), {name: values[name] for name in self.entries}

    def _around(self, axis: int, at: int) -> tuple[Span, int]:
        """The window around a crop that begins at `at`, and where the crop is in it."""
        whole, size, reach = self.shape[axis], self.window[axis], self.reach[axis]
        first = max(math.floor((at - reach.before) / reach.grid) * reach.grid, 0)
        first = min(first, whole - size)
        return (first, size), at - first


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartReading(Reading):
    """Each of the stage's clips is a random part of one of the data's: frames in a row, and a box.

    Attributes:
      factor: rows, and columns, of the data's clips that become one of the stage's.
    """

    factor: int

    @property
    def scale(self) -> tuple[int, int]:
        return self.factor, self.factor

    @property
    def whole(self) -> bool:
        return False

    def draw(self, rng: np.random.Generator) -> tuple[Part, dict[str, np.ndarray]]:
        """A part of a clip of the data; it has no `entries`."""
        frames, *box = self.video_shape
        first, top, left = (
            int(rng.integers(whole - size + 1))
            for whole, size in zip(self.data_shape, self.video_shape, strict=True)
        )
        rows, columns = zip((top, left), box, strict=True)
        return Part(tuple(range(first, first + frames)), rows, columns), {}


def _most(crop: int, reach: Reach) -> int:
    """Steps of the grid that a crop depends on at most, wherever it begins."""
    return (crop + reach.before + reach.after + reach.grid - 2) // reach.grid + 1
