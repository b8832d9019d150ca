"""The judge of rendered data: reads what a clip shows from its pixels, without a network.

`score` compares readings with captions. What captions may say, and how a clip is read, is a
`Vocabulary`: `MOVING_SHAPES` is here, `SCENES` in `scene_judge.py`.

Moving shapes, of which colour, shape and direction are read:

A clip is read in four steps. Colours: pixels are sorted by hue, and a colour that covers enough of
the frame is an object. Coverage: every pixel is unmixed into the colours found, which gives each
object a map of how much of each pixel it covers. Shape: the coverage's area and centroid fix the
size and place of a circle, a square and a triangle; each is drawn and the closest one wins, over
the whole clip and over either half. Direction: from the centroids' path.

What does not hold throughout is read as "none": a shape that vanishes, changes or fits nothing, a
path that is too short, crooked or broken by a jump. Something on the frame that is no object of a
known colour gives a further reading of three times "none", so that a clip with it is not right.
"""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, UInt8

from vdm_jax.data.shapes import COLORS, DIRECTIONS, SHAPES, Combination, coverage, parse_caption

NONE = "none"
FACTORS = Combination._fields  # color, shape, direction

# Lengths are in frame widths, areas in frame areas, brightness from 0 to 1.
BRIGHT = 0.3  # foreground, well above a sample's noise
SATURATED = 0.4  # below it a pixel has no hue
MIN_AREA = 0.02  # of an object: half of the smallest triangle's
MAX_AREA_CHANGE = 2.0  # of a frame against the clip's median
MAX_MISFIT = 0.25  # of a shape: squared error over squared coverage
MIN_DISPLACEMENT = 0.15  # about half of the least that is rendered
MAX_SLANT = 0.5  # movement across the direction over movement along it
MAX_STEP = 0.5  # of one frame over the whole displacement: more is a jump
MAX_WOBBLE = 0.15  # r.m.s. distance from uniform motion over the whole displacement
MIN_PRESENT = 0.75  # share of the frames that a colour or a path must be seen in


class Reading(NamedTuple):
    """What one object is seen to be; a factor is "none" where it cannot be told or changes."""

    color: str
    shape: str
    direction: str


def judge(video: np.ndarray) -> list[Reading]:
    """Reads a clip of moving shapes, uint8 [f, h, w, 3].

    Returns one Reading an object, larger objects first; none for a clip that shows nothing. Raises
    ValueError for anything but a square RGB clip of two or more frames.
    """
    video = np.asarray(video)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] != 3:
        raise ValueError(f"video {video.dtype}{list(video.shape)}: must be uint8 [f, h, w, 3]")
    if video.shape[1] != video.shape[2] or len(video) < 2:
        raise ValueError(f"video {list(video.shape)}: must be square, with at least two frames")
    pixels = video.astype(np.float32) / 255
    readings, explained = [], np.zeros(video.shape[:3], bool)
    for index, amount, near in _objects(pixels):
        explained |= near
        readings.append(_read_object(index, amount))
    bright = pixels.max(-1) > BRIGHT
    if (bright & ~explained).mean() >= MIN_AREA:
        readings.append(Reading(NONE, NONE, NONE))
    return readings


def wobble(video: UInt8[np.ndarray, "f h w 3"]) -> float:
    """How far the largest object strays from uniform motion: the r.m.s. distance of its centroid,
    in frame widths, from the straight line through time that fits best. NaN where no object is
    seen in enough frames."""
    for _, amount, _ in _objects(np.asarray(video).astype(np.float32) / 255):
        trace = _trace(amount)
        if trace.present.mean() < MIN_PRESENT:
            return float("nan")
        return straight(np.flatnonzero(trace.present), trace.path)[1]
    return float("nan")


def _equal(said: Sequence[str], read: Sequence[str]) -> tuple[bool, ...]:
    return tuple(a == b for a, b in zip(said, read, strict=True))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """What a data set's captions say, and how it is read from pixels.

    Attributes:
      factors: names of what is said of an object.
      parse: a caption as one tuple an object, a text a factor; "" is what the caption leaves open.
      read: the readings of a clip, uint8 [f, h, w, 3], one an object.
      nothing: the reading of an object that is not there.
      agree: of what is said and a reading, for each factor whether they agree.
    """

    factors: tuple[str, ...]
    parse: Callable[[str], Sequence[Any]]
    read: Callable[[np.ndarray], list[Any]]
    nothing: Any
    agree: Callable[[Any, Any], tuple[bool, ...]] = _equal


MOVING_SHAPES = Vocabulary(
    factors=FACTORS, parse=parse_caption, read=judge, nothing=Reading(NONE, NONE, NONE)
)


def score(
    videos: UInt8[np.ndarray, "n f h w 3"],
    captions: Sequence[str],
    vocabulary: Vocabulary = MOVING_SHAPES,
) -> dict[str, float | int]:
    """How often clips show what their captions say.

    Returns by each of the vocabulary's factors that some caption says: the share of captioned
    objects with that factor right; `all`: the share of clips with every factor of every object
    right and nothing else on the frame; `n`: the number of clips. Raises ValueError for a caption
    of another form, and where the numbers of clips and captions differ.
    """
    if len(videos) != len(captions) or not len(videos):
        raise ValueError(f"{len(videos)} videos and {len(captions)} captions: must be equal, not 0")
    rights = {factor: [] for factor in vocabulary.factors}
    clips_right = []
    for video, said in zip(videos, [vocabulary.parse(text) for text in captions], strict=True):
        readings = vocabulary.read(video)
        agreed = _match(said, readings, vocabulary)
        for item, right in zip(said, agreed, strict=True):
            for factor, word, agrees in zip(vocabulary.factors, item, right, strict=True):
                rights[factor] += [agrees] if word else []
        clips_right.append(all(map(all, agreed)) and len(readings) == len(said))
    return {
        **{factor: float(np.mean(right)) for factor, right in rights.items() if right},
        "all": float(np.mean(clips_right)),
        "n": len(clips_right),
    }


def _match(
    said: Sequence[Any], readings: Sequence[Any], vocabulary: Vocabulary
) -> list[tuple[bool, ...]]:
    """Which factors agree when every captioned object has a reading of its own, paired so that most
    agrees; what is missing is read as nothing, and what a caption leaves open agrees."""
    padded = [*readings, *[vocabulary.nothing] * len(said)]

    def agreed(item, reading):
        right = vocabulary.agree(item, reading)
        return tuple(bool(a) or not word for a, word in zip(right, item, strict=True))

    orders = (
        [agreed(*pair) for pair in zip(said, order, strict=True)]
        for order in itertools.permutations(padded, len(said))
    )
    return max(orders, key=lambda order: sum(map(sum, order)))


def _objects(pixels: Float[np.ndarray, "f h w 3"]):
    """Yields of each object, larger ones first: the index of its colour, how much of each pixel it
    covers, and where it may be."""
    hues = _hue_classes(pixels)
    size = pixels.shape[1]
    areas = np.stack([(hues == i).mean((1, 2)) for i in range(len(COLORS))], -1)  # [f, colours]
    share = areas.mean(0)
    found = [int(i) for i in np.argsort(-share, kind="stable") if share[i] >= MIN_AREA]
    # Two objects at most are ever drawn, and only two colours unmix without ambiguity.
    objects = found[:2]
    for index, amount in zip(objects, _unmix(pixels, objects), strict=True):
        near = _grow(hues == index, 1 + size // 32)
        yield index, amount * near, near


def _hue_classes(pixels: Float[np.ndarray, "f h w 3"]) -> np.ndarray:
    """The index in COLORS of every bright, saturated pixel; -1 elsewhere."""
    high, low = pixels.max(-1), pixels.min(-1)
    chroma = high - low
    vivid = (high > BRIGHT) & (chroma > SATURATED * high)
    # Between its extremes 0 and 1 a hue is told by its middle channel; nearest corner wins.
    unit = (pixels[vivid] - low[vivid, None]) / chroma[vivid, None]
    colors = np.array(list(COLORS.values()), np.float32) / 255
    classes = np.full(high.shape, -1)
    classes[vivid] = np.abs(unit[:, None, :] - colors).sum(-1).argmin(-1)
    return classes


def _unmix(pixels: Float[np.ndarray, "f h w 3"], found: Sequence[int]) -> np.ndarray:
    """How much of each of the colours `found` every pixel holds: [len(found), f, h, w]."""
    if not found:
        return np.zeros((0, *pixels.shape[:-1]), np.float32)
    colors = np.array(list(COLORS.values()), np.float32)[list(found)] / 255  # [k, 3]
    return np.moveaxis(np.clip(pixels @ np.linalg.pinv(colors), 0, 1), -1, 0)


def _grow(mask: Bool[np.ndarray, "f h w"], pixels: int) -> Bool[np.ndarray, "f h w"]:
    """The mask and all pixels up to `pixels` away from it along rows and columns."""
    for _ in range(pixels):
        padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
        rows = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
        mask = rows[:, :, :-2] | rows[:, :, 1:-1] | rows[:, :, 2:]
    return mask


class _Trace(NamedTuple):
    """An object through time: its coverage with full coverage at 1, its area in square pixels and
    its centroid in pixels, in every frame; the frames that it is in, and its path in them, in frame
    widths."""

    amount: np.ndarray
    area: np.ndarray
    centroid: np.ndarray
    present: np.ndarray
    path: np.ndarray


def _trace(amount: Float[np.ndarray, "f h w"]) -> _Trace:
    size = amount.shape[-1]
    # Generated objects are not always fully bright: full coverage is what most of it reaches.
    solid = amount[amount > BRIGHT]
    amount = np.clip(amount / max(np.quantile(solid, 0.75), BRIGHT), 0, 1) if solid.size else amount
    area = amount.sum((1, 2))  # square pixels
    median = np.median(area)
    present = (area >= median / MAX_AREA_CHANGE) & (area > MIN_AREA * size**2 / 2)
    place = np.arange(size) + 0.5
    centroid = np.stack([amount.sum(1) @ place, amount.sum(2) @ place], -1)
    centroid = centroid / np.maximum(area, 1e-6)[:, None]
    return _Trace(amount, area, centroid, present, centroid[present] / size)


def _read_object(color: int, amount: Float[np.ndarray, "f h w"]) -> Reading:
    trace = _trace(amount)
    if trace.present.mean() < MIN_PRESENT:
        return Reading(NONE, NONE, NONE)
    steady = trace.present.all() and (trace.area <= np.median(trace.area) * MAX_AREA_CHANGE).all()
    return Reading(
        list(COLORS)[color],
        _shape(trace.amount, trace.area, trace.centroid) if steady else NONE,
        direction(np.flatnonzero(trace.present), trace.path, len(amount)),
    )


def _shape(amount: np.ndarray, area: np.ndarray, centroid: np.ndarray) -> str:
    """Draws each shape with the area and centroid seen in each frame; the nearest wins."""
    frames, size, _ = amount.shape
    misfits = []
    for index, shape in enumerate(SHAPES):
        radius = np.sqrt(area / {"circle": np.pi, "square": 4.0, "triangle": 2.0}[shape])
        centre = centroid.copy()
        if shape == "triangle":  # whose centroid lies below the middle of its bounding box
            centre[:, 1] -= radius / 3
        drawn = coverage(np.full(frames, index), centre, radius, size)
        misfits.append(((drawn - amount) ** 2).sum((1, 2)) / (amount**2).sum((1, 2)))
    misfits = np.array(misfits)  # [shapes, f]
    best = int(misfits.mean(1).argmin())
    half = frames // 2
    if any(part.mean(1).argmin() != best for part in (misfits[:, :half], misfits[:, half:])):
        return NONE
    return SHAPES[best] if np.median(misfits[best]) <= MAX_MISFIT else NONE


def direction(times: np.ndarray, centroid: Float[np.ndarray, "t 2"], frames: int) -> str:
    """The direction of uniform motion without jumps, or "none".

    times: which of the clip's frames the centroids, in frame widths, are of.
    """
    slope, astray = straight(times, centroid)
    travelled = slope * (frames - 1)  # over the clip, along x and y
    along = int(np.abs(travelled).argmax())
    distance = abs(travelled[along])
    # The step from frame to frame, per frame passed where frames in between are missing.
    steps = np.abs(np.diff(centroid, axis=0)).max(-1) / np.diff(times)
    if (
        distance < MIN_DISPLACEMENT
        or abs(travelled[1 - along]) > MAX_SLANT * distance
        or astray > MAX_WOBBLE * distance
        or (frames > 3 and steps.max() > MAX_STEP * distance)
    ):
        return NONE
    unit = [0, 0]
    unit[along] = int(np.sign(travelled[along]))
    return next(name for name, step in DIRECTIONS.items() if step == tuple(unit))


def straight(
    times: np.ndarray, path: Float[np.ndarray, "t 2"]
) -> tuple[Float[np.ndarray, "2"], float]:
    """The uniform motion that fits a path best, a frame, and the path's r.m.s. distance from it."""
    slope, start = np.polyfit(times, path, 1)
    return slope, float(np.sqrt(((path - start - times[:, None] * slope) ** 2).sum(-1).mean()))
