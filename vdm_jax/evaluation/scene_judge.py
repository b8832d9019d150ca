"""The judge of the scenes data: reads object, colour, place, motion and background from pixels.

A frame is read as the cheapest explanation of its pixels. Background: each background has a palette
of colours with their shares, measured on rendered ones; the likeliest wins, if its palette
explains most of the frame. Objects: every thing of the vocabulary is drawn in every size at every
place. Its gain is the cost of its pixels as background minus their cost as this thing; the greatest
gain wins. What it explains is taken out, and the search begins anew, until nothing is left that
the background does not explain.

A clip is read in some of its frames this way, whose gains are added; then each object is followed
through all frames. A clip of one frame has no motion. What changes or fits nothing is "none".
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy.lib.stride_tricks import sliding_window_view

from vdm_jax.data.scenes import backgrounds, things
from vdm_jax.data.scenes.grammar import (
    BACKGROUNDS,
    PLACES,
    THINGS,
    Item,
    parse_caption,
    place,
)
from vdm_jax.evaluation.judge import NONE, Vocabulary, direction

SIZE = 64  # pixels of a frame's sides
FACTORS = Item._fields  # object, color, place, motion, background

# Frames are read at half their size.
_HALF = SIZE // 2
_WINDOW = 15  # pixels: the largest thing and one more
_MARGIN = 3  # pixels around the frame in which windows may lie
_SIDE = _HALF + 2 * _MARGIN - _WINDOW + 1  # windows along an axis
_DIAMETERS = tuple(9.0 * (14.0 / 9.0) ** (step / 6) for step in range(7))  # 18 to 28 of the frame
_PHASES = (0.0, 0.5)  # of a centre between pixels, along each axis
_FIRST_DIAMETERS = (0, 2, 4, 6)  # in which all things are searched first
_READ_FRAMES = 4  # of a clip, in which all things are searched
_CANDIDATES = 8  # things of the first search whose gain is measured
_MOST_OBJECTS = 3

# A pixel costs its squared distance to a colour over SPREAD**2, at most MOST_COST.
SPREAD = 0.1  # of colours from 0 to 1
MOST_COST = 8.0
MAX_FOREIGN = 0.55  # share of pixels that a background's palette need not explain
MIN_GAIN = 15.0  # of an object in a frame: the cost of two pixels that nothing explains
MAX_MISFIT = 0.6  # of an object: mean cost of its pixels over MOST_COST
MIN_TRACKED = 0.25  # least gain in a frame over the clip's median
MAX_UNEXPLAINED = 0.03  # share of the pixels that neither background nor objects explain
TOLERANCE = 1.5 / SIZE  # of a place's borders, in frame widths
_COLOURS = 24  # of a palette


class Reading(NamedTuple):
    """What one object is seen to be. `places` holds two or more where it is on a border."""

    object: str
    color: str
    places: tuple[str, ...]
    motion: str
    background: str


NOTHING = Reading(NONE, NONE, (), NONE, NONE)


def read(video: UInt8[np.ndarray, "f h w 3"]) -> list[Reading]:
    """Reads a clip, or a single frame as a clip of one, uint8 [f, 64, 64, 3].

    Returns one Reading an object, those that are plainer first. Raises ValueError for another
    shape or dtype.
    """
    video = np.asarray(video)
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[1:] != (SIZE, SIZE, 3):
        raise ValueError(
            f"video {video.dtype}{list(video.shape)}: must be uint8 [f, {SIZE}, {SIZE}, 3]"
        )
    pixels = _halved(video.astype(np.float32) / 255)
    ground = _ground(pixels)
    scene = _Scene.of(pixels, ground)
    readings = []
    for _ in range(_MOST_OBJECTS):
        if (found := _search(scene)) is None:
            break
        track = _follow(scene, found)
        readings.append(_reading(track, found, ground))
        scene = scene.without(track.covered)
    unexplained = (scene.cost > MOST_COST / 2).sum() / scene.weight.size
    if not readings or unexplained > MAX_UNEXPLAINED:
        readings.append(NOTHING._replace(background=ground))
    return readings


def _halved(pixels: Float[np.ndarray, "f h w 3"]) -> Float[np.ndarray, "f h2 w2 3"]:
    f, h, w, c = pixels.shape
    return pixels.reshape(f, h // 2, 2, w // 2, 2, c).mean((2, 4))


# --- background ----------------------------------------------------------------------------------


class _Palette(NamedTuple):
    colors: Float[np.ndarray, "b k 3"]
    shares: Float[np.ndarray, "b k"]


@functools.cache
def _palettes() -> _Palette:
    """Of each background the colours of its pixels at half size, and how frequent each is."""
    colors, shares = [], []
    for index, name in enumerate(BACKGROUNDS):
        rng = np.random.default_rng((0, index))
        drawn = np.stack([backgrounds.draw(name, rng, SIZE)[1] for _ in range(8)])
        samples = _halved(np.round(drawn) / 255).reshape(-1, 3).astype(np.float32)
        chosen = [samples[0]]  # each the one that is farthest from those before
        distance = ((samples - chosen[0]) ** 2).sum(-1)
        while len(chosen) < _COLOURS:
            chosen.append(samples[distance.argmax()])
            distance = np.minimum(distance, ((samples - chosen[-1]) ** 2).sum(-1))
        palette = np.stack(chosen)
        nearest = _squared(samples, palette).argmin(-1)
        colors.append(palette)
        shares.append(np.bincount(nearest, minlength=_COLOURS) / len(nearest))
    return _Palette(np.stack(colors), np.stack(shares).astype(np.float32))


def _squared(
    pixels: Float[np.ndarray, "*n 3"], colors: Float[np.ndarray, "k 3"]
) -> Float[np.ndarray, "*n k"]:
    """Squared distances of colours."""
    product = pixels @ colors.T
    found = (pixels**2).sum(-1)[..., None] - 2 * product + (colors**2).sum(-1)
    return np.maximum(found, 0)


def _ground(pixels: Float[np.ndarray, "f h w 3"]) -> str:
    """The name of the background, "none" where none explains enough of every half of the clip."""
    palette = _palettes()
    chosen = np.unique(np.linspace(0, len(pixels) - 1, _READ_FRAMES).astype(int))
    seen = pixels[chosen][:, ::2, ::2].reshape(len(chosen), -1, 3)
    names = list(BACKGROUNDS)
    cost = _squared(seen, palette.colors.reshape(-1, 3)) / SPREAD**2
    cost = cost.reshape(*seen.shape[:2], len(names), -1)
    # A colour's likelihood in each background; what is foreign to all has equal, small ones.
    likelihood = (np.exp(-2 * np.minimum(cost, 40)) * palette.shares).sum(-1) + 1e-3
    scores = np.log(likelihood).mean(1)  # [frames, backgrounds]
    best = int(scores.mean(0).argmax())
    foreign = (cost[:, :, best].min(-1) > 1).mean(1)
    if (scores.argmax(1) != best).any() or (foreign > MAX_FOREIGN).any():
        return NONE
    return names[best]


class _Scene(NamedTuple):
    """A clip at half size, with a margin: pixels, their squared distance to the background's
    palette (1 where there is none), 1 where a pixel counts, and the background's mean colour."""

    pixels: Float[np.ndarray, "f h w 3"]
    distance: Float[np.ndarray, "f h w"]
    weight: Float[np.ndarray, "f h w"]
    mean: Float[np.ndarray, "3"]

    @classmethod
    def of(cls, pixels: Float[np.ndarray, "f h w 3"], ground: str) -> "_Scene":
        palettes = _palettes()
        if ground == NONE:
            distance, mean = np.ones(pixels.shape[:3], np.float32), np.full(3, 0.5, np.float32)
        else:
            index = list(BACKGROUNDS).index(ground)
            distance = _squared(pixels, palettes.colors[index]).min(-1)
            mean = palettes.shares[index] @ palettes.colors[index]
        margin = ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN))
        return cls(
            np.pad(pixels, (*margin, (0, 0))),
            np.pad(distance, margin),
            np.pad(np.ones_like(distance), margin),
            mean,
        )

    def without(self, covered: Bool[np.ndarray, "f h w"]) -> "_Scene":
        return self._replace(weight=self.weight * ~covered)

    @property
    def cost(self) -> Float[np.ndarray, "f h w"]:
        """What it costs to explain each pixel as background."""
        return np.minimum(self.distance / SPREAD**2, MOST_COST) * self.weight


# --- objects -------------------------------------------------------------------------------------


class _Templates(NamedTuple):
    """Every thing in every size and phase, in this order.

    Attributes:
      covered: how much of each pixel of the window it covers.
      color: its colour, times that.
      weights: of (its squared distance to the background minus its squared colour, its colours, 1)
        of each pixel, in the gain that `_first_gains` measures.
      diameter: in pixels; centre: (y, x) in the window.
    """

    covered: Float[np.ndarray, "n t p p"]
    color: Float[np.ndarray, "n t p p 3"]
    weights: Float[np.ndarray, "n t c"]
    diameter: Int[np.ndarray, "t"]
    centre: Float[np.ndarray, "t 2"]


@functools.cache
def _templates() -> _Templates:
    phases = np.array([(x, y) for y in _PHASES for x in _PHASES]) + _WINDOW / 2
    drawn = np.zeros((len(THINGS), len(_DIAMETERS), len(phases), _WINDOW, _WINDOW, 4), np.float32)
    for of_thing, picture in zip(drawn, things.pictures(), strict=True):
        for of_size, diameter in zip(of_thing, _DIAMETERS, strict=True):
            patches, corners = things.resample(picture, phases, diameter)
            for window, patch, (x, y) in zip(of_size, patches, corners, strict=True):
                inside = patch[: _WINDOW - y, : _WINDOW - x] / 255
                window[y : y + len(inside), x : x + inside.shape[1]] = inside
    drawn = drawn.reshape(len(THINGS), -1, _WINDOW, _WINDOW, 4)
    covered, color = drawn[..., 3], drawn[..., :3]
    solid = (covered * (covered > 0.5))[..., None]  # what is mostly background says little
    pure = color / np.maximum(covered, 1e-3)[..., None]
    parts = [solid, 2 * solid * pure, -(solid * pure**2).sum(-1, keepdims=True)]
    weights = np.concatenate(parts, -1)
    return _Templates(
        covered=covered,
        color=color,
        weights=weights.reshape(*weights.shape[:2], -1),
        diameter=np.repeat(np.arange(len(_DIAMETERS)), len(phases)),
        centre=np.tile(phases[:, ::-1], (len(_DIAMETERS), 1)),
    )


class _Found(NamedTuple):
    """A thing and its diameter, by their numbers; whether nothing else fits its place better in
    either half of the clip."""

    thing: int
    diameter: int
    agreed: bool


class _Match(NamedTuple):
    """Where a thing is in a frame: its gain, its misfit, its template, its window's (y, x)."""

    gain: float
    misfit: float
    template: int
    window: tuple[int, int]


def _search(scene: _Scene) -> _Found | None:
    """The thing with the greatest gain over some of the frames; None if all gain too little."""
    chosen = np.unique(np.linspace(0, len(scene.pixels) - 1, _READ_FRAMES).astype(int))
    if scene.cost[chosen].sum((1, 2)).mean() < MIN_GAIN:
        return None
    templates = _templates()
    first = np.flatnonzero(np.isin(templates.diameter, _FIRST_DIAMETERS))[:: len(_PHASES) ** 2]
    weights = templates.weights[:, first].reshape(-1, templates.weights.shape[-1])
    gains = [
        _first_gains(scene, frame, weights).reshape(_SIDE**2, len(THINGS), -1) for frame in chosen
    ]
    candidates = np.argsort(-sum(gain.max((0, 2)) for gain in gains))[:_CANDIDATES]
    matches = []
    for frame, gain in zip(chosen, gains, strict=True):
        tops = [divmod(int(gain[:, thing].max(-1).argmax()), _SIDE) for thing in candidates]
        matches.append(
            [
                _match(scene, frame, int(thing), slice(None), top)
                for thing, top in zip(candidates, tops, strict=True)
            ]
        )
    sure = np.array([[match.gain for match in row] for row in matches])  # [frames, candidates]
    best = int(sure.mean(0).argmax())
    if sure[:, best].mean() < MIN_GAIN:
        return None
    # What the same place may show instead; another object elsewhere is no rival.
    places = np.array([[match.window for match in row] for row in matches])
    near = np.abs(places - places[:, best : best + 1]).max(-1) <= _WINDOW // 3
    halves = np.array_split(np.where(near, sure, -np.inf), min(2, len(sure)))
    sizes = [templates.diameter[row[best].template] for row in matches]
    return _Found(
        thing=int(candidates[best]),
        diameter=int(np.median(sizes)),
        agreed=all(half.sum(0).argmax() == best for half in halves),
    )


def _first_gains(
    scene: _Scene, frame: int, weights: Float[np.ndarray, "t c"]
) -> Float[np.ndarray, "n t"]:
    """Of templates at all windows the squared distances of their pixels to the background's colours
    minus those to their own."""
    pixels = scene.pixels[frame]
    own = scene.distance[frame] - (pixels**2).sum(-1)
    parts = np.concatenate([own[..., None], pixels, np.ones((*own.shape, 1), np.float32)], -1)
    parts *= scene.weight[frame][..., None]
    windows = np.moveaxis(sliding_window_view(parts, (_WINDOW, _WINDOW), (0, 1)), 2, -1)
    return windows.reshape(_SIDE**2, -1) @ weights.T


def _match(scene: _Scene, frame: int, thing: int, variants: slice, near: tuple[int, int]) -> _Match:
    """The best place of a thing, in some of its sizes and phases, within a pixel of a window."""
    templates = _templates()
    covered = templates.covered[thing, variants].reshape(-1, _WINDOW**2)
    color = templates.color[thing, variants].reshape(*covered.shape, 3)
    drawn = color + (1 - covered)[..., None] * scene.mean  # [t, pixels, 3]
    top, left = (min(max(at - 1, 0), _SIDE - 3) for at in near)
    box = (slice(top, top + _WINDOW + 2), slice(left, left + _WINDOW + 2))

    def windows(array):
        found = sliding_window_view(array[box], (_WINDOW, _WINDOW), (0, 1))
        return found.reshape(9, *found.shape[2:-2], _WINDOW**2)

    pixels = np.moveaxis(windows(scene.pixels[frame]), 1, -1)  # [9, pixels, 3]
    cost = (pixels**2).sum(-1)[:, None] + (drawn**2).sum(-1)
    cost -= 2 * np.einsum("npc,tpc->ntp", pixels, drawn, optimize=True)
    cost = np.minimum(cost / SPREAD**2, MOST_COST)  # [9, t, pixels]
    seen = windows(scene.weight[frame])[:, None] * (covered > 0.1)
    gain = (seen * (windows(scene.cost[frame])[:, None] - cost)).sum(-1)
    at, template = np.unravel_index(int(gain.argmax()), gain.shape)
    misfit = (seen * cost)[at, template].sum() / max(seen[at, template].sum(), 1) / MOST_COST
    first = range(len(templates.diameter))[variants][template]
    return _Match(float(gain.max()), float(misfit), first, (top + at // 3, left + at % 3))


class _Track(NamedTuple):
    """An object in every frame: its gain, its misfit, its centre (x, y) in frame widths, and the
    pixels that it covers, with those beside them."""

    gain: Float[np.ndarray, "f"]
    misfit: Float[np.ndarray, "f"]
    centre: Float[np.ndarray, "f 2"]
    covered: Bool[np.ndarray, "f h w"]


def _follow(scene: _Scene, found: _Found) -> _Track:
    templates = _templates()
    same = len(_PHASES) ** 2  # templates of one size
    variants = slice(max(found.diameter - 1, 0) * same, (found.diameter + 2) * same)
    weights = templates.weights[found.thing, variants]
    gains, misfits, centres = [], [], []
    covered = np.zeros(scene.weight.shape, bool)
    for frame in range(len(scene.pixels)):
        top = divmod(int(_first_gains(scene, frame, weights).max(-1).argmax()), _SIDE)
        match = _match(scene, frame, found.thing, variants, top)
        gains.append(match.gain)
        misfits.append(match.misfit)
        y, x = match.window
        middle = np.array(match.window) + templates.centre[match.template] - _MARGIN
        centres.append(middle[::-1] / _HALF)
        mask = templates.covered[found.thing, match.template] > 0.1
        covered[frame, y : y + _WINDOW, x : x + _WINDOW] = mask
    return _Track(np.array(gains), np.array(misfits), np.array(centres), _grown(covered))


def _grown(mask: Bool[np.ndarray, "f h w"]) -> Bool[np.ndarray, "f h w"]:
    """The mask and the pixels beside it."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
    return rows[:, :, :-2] | rows[:, :, 1:-1] | rows[:, :, 2:]


def _reading(track: _Track, found: _Found, ground: str) -> Reading:
    thing = THINGS[found.thing]
    steady = (track.gain >= MIN_TRACKED * np.median(track.gain)).all()
    if not (found.agreed and steady and np.median(track.misfit) <= MAX_MISFIT):
        return NOTHING._replace(background=ground)
    frames = len(track.centre)
    motion = direction(np.arange(frames), track.centre, frames) if frames > 1 else ""
    places = _places(*track.centre[0]) if frames == 1 else ()
    return Reading(thing.object, thing.color, places, motion, ground)


def _places(x: float, y: float) -> tuple[str, ...]:
    """The places that a centre may be in, to within TOLERANCE."""
    around = (-TOLERANCE, 0, TOLERANCE)
    found = {place(x + right, y + down) for right in around for down in around}
    return tuple(name for name in PLACES if name in found)


def agree(said: Item, reading: Reading) -> tuple[bool, ...]:
    """Which of the factors of a caption's object a reading agrees with."""
    return (
        said.object == reading.object,
        said.color == reading.color,
        said.place in reading.places,
        said.motion == reading.motion,
        said.background == reading.background,
    )


SCENES = Vocabulary(factors=FACTORS, parse=parse_caption, read=read, nothing=NOTHING, agree=agree)
