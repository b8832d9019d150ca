"""The judge of the scenes data: reads object, colour, place, motion and background from pixels.

A frame is read as the cheapest explanation of its pixels (`scene_matching`). Background: the
palette that makes its pixels likeliest, if it explains most of them and they are not flat. Objects:
of all things, in all sizes, at all places, the one with the greatest gain. Its pixels are taken
out, and the search begins anew, until no gain is left. Whatever then is unexplained, if it is
large, gives a further reading of "none".

A clip is searched so in some of its frames, whose gains are added, and each object is followed
through all frames. A clip of one frame has a place and no motion, a longer one a motion and no
place. What changes, or fits nothing, is read as "none".
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8
from numpy.lib.stride_tricks import sliding_window_view

from vdm_jax.data.scenes.grammar import BACKGROUNDS, PLACES, THINGS, Item, parse_caption, place
from vdm_jax.evaluation import scene_matching as matching
from vdm_jax.evaluation.judge import NONE, Vocabulary, direction
from vdm_jax.evaluation.scene_matching import (
    HALF,
    MARGIN,
    MOST_COST,
    PHASES,
    SIDE,
    SIZE,
    SPREAD,
    WINDOW,
    Match,
    View,
)

FACTORS = Item._fields  # object, color, place, motion, background

MAX_FOREIGN = 0.55  # share of a frame's pixels that the background's palette need not explain
MIN_GRAIN = 0.3  # of a background over the least of a rendered one
MIN_GAIN = 12.0  # of an object: what two pixels cost that nothing explains
MAX_MISFIT = 0.45  # of an object
MIN_TRACKED = 0.25  # least gain in a frame over the clip's median
MAX_UNEXPLAINED = 0.03  # share of the pixels that neither background nor objects explain
TOLERANCE = 1.5 / SIZE  # of the places' borders, in frame widths

_FRAMES = 4  # of a clip, in which all things are searched
_DIAMETERS = (0, 2, 4, 6)  # numbers of those in which all things are searched first
# Things of the first search that are compared exactly; more where none of the first ones fits.
_CANDIDATES = (6, 24)
_MOST_OBJECTS = 3


class Reading(NamedTuple):
    """What one object is seen to be. `places` has several names where it is on a border, and none
    in a clip; `motion` is "" in a single frame."""

    object: str
    color: str
    places: tuple[str, ...]
    motion: str
    background: str


NOTHING = Reading(NONE, NONE, (), NONE, NONE)


def read(video: UInt8[np.ndarray, "f h w 3"]) -> list[Reading]:
    """Reads a clip, or a single frame as a clip of one, uint8 [f, 64, 64, 3], or half as large: all
    are read at half of scenes' size.

    Returns one Reading an object, those that are plainer first; at least one, so that a background
    without objects is read too. Raises ValueError for another shape or dtype.
    """
    video = np.asarray(video)
    sizes = [(side, side, 3) for side in (SIZE, HALF)]
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[1:] not in sizes:
        raise ValueError(
            f"video {video.dtype}{list(video.shape)}: must be uint8 [f, {SIZE}, {SIZE}, 3], or "
            f"[f, {HALF}, {HALF}, 3]"
        )
    pixels = video.astype(np.float32) / 255
    if pixels.shape[1] == SIZE:
        pixels = matching.halved(pixels)
    ground = _background(pixels)
    background = NONE if ground is None else tuple(BACKGROUNDS)[ground]
    view, readings = matching.make_view(pixels, ground), []
    for _ in range(_MOST_OBJECTS):
        if view.cost.sum((1, 2)).mean() < MIN_GAIN:
            break
        found = _search(view)
        track = _follow(view, found)
        if np.median(track.gain) < MIN_GAIN:
            break
        readings.append(_reading(track, found, background))
        view = view.without(track.covered)
    unexplained = (view.cost > MOST_COST / 2).sum() / pixels[..., 0].size
    if not readings or unexplained > MAX_UNEXPLAINED:
        readings.append(NOTHING._replace(background=background))
    return readings


def foregrounds(videos: UInt8[np.ndarray, "n f h w 3"]) -> Bool[np.ndarray, "n f h w"]:
    """Where clips of 64 x 64 show what their background does not explain: their objects.

    Nothing where no background is recognised. Raises ValueError for another size.
    """
    check_size("videos", videos.shape[1:])
    return np.stack([_foreground(video) for video in videos])


def _foreground(video: UInt8[np.ndarray, "f h w 3"]) -> Bool[np.ndarray, "f h w"]:
    pixels = matching.halved(video.astype(np.float32) / 255)
    if (ground := _background(pixels)) is None:
        return np.zeros(video.shape[:3], bool)
    cost = matching.make_view(pixels, ground).cost[:, MARGIN:-MARGIN, MARGIN:-MARGIN]
    return (cost > MOST_COST / 2).repeat(2, axis=1).repeat(2, axis=2)


def centres(video: UInt8[np.ndarray, "f h w 3"]) -> Float[np.ndarray, "f 2"] | None:
    """The centre (x, y) of the plainest object in each frame, in frame widths; None where no object
    is seen. Raises ValueError for another shape than `read`'s."""
    check_size("video", video.shape)
    pixels = matching.halved(video.astype(np.float32) / 255)
    view = matching.make_view(pixels, _background(pixels))
    if view.cost.sum((1, 2)).mean() < MIN_GAIN:
        return None
    track = _follow(view, _search(view))
    return track.centre if np.median(track.gain) >= MIN_GAIN else None


def check_size(name: str, shape: Sequence[int]) -> None:
    """Raises ValueError where clips (f, h, w, 3) have another size than scenes."""
    if tuple(shape[1:]) != (SIZE, SIZE, 3):
        raise ValueError(f"{name}: clips {list(shape)}: must be [f, {SIZE}, {SIZE}, 3]")


def _chosen(frames: int) -> Int[np.ndarray, "n"]:
    """The frames of a clip in which everything is searched."""
    return np.unique(np.linspace(0, frames - 1, _FRAMES).astype(int))


def _background(pixels: Float[np.ndarray, "f h w 3"]) -> int | None:
    """The number of the background; None where frames disagree, where its palette explains too
    little, or where what it explains is too flat."""
    colors, shares, grains = matching.palettes()
    frames = pixels[_chosen(len(pixels))]
    seen = frames[:, ::2, ::2].reshape(len(frames), -1, 3)
    cost = matching.squared_distances(seen, colors.reshape(-1, 3)) / SPREAD**2
    cost = cost.reshape(*seen.shape[:2], *shares.shape)
    # A pixel's likelihood in each background; pixels of objects are unlikely in all alike.
    likelihood = (np.exp(-2 * np.minimum(cost, 40)) * shares).sum(-1) + 1e-3
    scores = np.log(likelihood).mean(1)  # [frames, backgrounds]
    best = int(scores.mean(0).argmax())
    foreign = (cost[:, :, best].min(-1) > 1).mean(1)
    if (scores.argmax(1) != best).any() or (foreign > MAX_FOREIGN).any():
        return None
    explained = matching.squared_distances(frames, colors[best]).min(-1) < SPREAD**2
    return best if matching.grain(frames, explained) >= MIN_GRAIN * grains[best] else None


class _Found(NamedTuple):
    """A thing and its diameter, by their numbers; whether nothing else fits its place better in
    either half of the clip."""

    thing: int
    diameter: int
    agreed: bool


def _search(view: View) -> _Found:
    """The thing with the greatest gain over some of the frames."""
    bank, chosen = matching.templates(), _chosen(len(view.pixels))
    first = np.flatnonzero(np.isin(bank.diameter, _DIAMETERS))[:: len(PHASES)]
    weights = matching.rough_weights(view, bank.smooth[:, first].reshape(-1, WINDOW, WINDOW, 4))
    gains = [
        matching.rough_gains(view, frame, weights).reshape(SIDE**2, len(THINGS), -1)
        for frame in chosen
    ]
    order = _likeliest(
        [(gain.max(-1), _peaks(view, f, gain)) for f, gain in zip(chosen, gains, strict=True)]
    )
    matches = [[] for _ in chosen]
    for count in _CANDIDATES:
        for row, frame, gain in zip(matches, chosen, gains, strict=True):
            for thing in order[len(row) : count]:
                row.append(_match(view, frame, int(thing), slice(None), gain[:, thing]))
        sure = np.array([[match.gain for match in row] for row in matches])  # [frames, things]
        best = int(sure.mean(0).argmax())
        misfit = np.median([row[best].misfit for row in matches])
        if misfit <= MAX_MISFIT and sure[:, best].mean() >= MIN_GAIN:
            break
    # What the same place may show instead; another object elsewhere is no rival.
    places = np.array([[match.window for match in row] for row in matches])
    near = np.abs(places - places[:, best : best + 1]).max(-1) <= WINDOW // 3
    halves = np.array_split(np.where(near, sure, -np.inf), min(2, len(sure)))
    sizes = [bank.diameter[row[best].template] for row in matches]
    return _Found(
        thing=int(order[best]),
        diameter=int(np.median(sizes)),
        agreed=all(half.sum(0).argmax() == best for half in halves),
    )


def _likeliest(
    found: Sequence[tuple[Float[np.ndarray, "n things"], Sequence[tuple[int, int]]]],
) -> Int[np.ndarray, "things"]:
    """Things in the order in which they are compared: the best of each frame first, and so on.

    found: gains and peaks of each frame. Gains are ranked near each peak. What roughly fits another
    object of the frame would else take the place of what fits this one.
    """
    ranks = []
    for gain, peaks in found:
        for peak in peaks:
            near = gain[_near(peak).reshape(-1)].max(0)
            ranks.append(np.argsort(np.argsort(-near)))
    return np.argsort(np.min(ranks, axis=0), kind="stable")


def _peaks(view: View, frame: int, gains: Float[np.ndarray, "n ..."]) -> list[tuple[int, int]]:
    """The window (y, x) with the greatest gain, and the one with the greatest elsewhere.

    Where an object was taken out, also the window around the middle of what costs most. A window
    without pixels that count gains nothing and loses nothing. It may so come before an object of
    the background's colours, which roughly loses.
    """
    gains = gains.reshape(SIDE**2, -1).max(-1)
    first = divmod(int(gains.argmax()), SIDE)
    elsewhere = np.where(_near(first).reshape(-1), -np.inf, gains)
    found = [first, divmod(int(elsewhere.argmax()), SIDE)]
    if (view.weight[frame, MARGIN:-MARGIN, MARGIN:-MARGIN] == 0).any():
        cost = view.cost[frame]
        costs = sliding_window_view(cost, (WINDOW, WINDOW)).sum((2, 3))
        y, x = divmod(int(costs.argmax()), SIDE)
        part = cost[y : y + WINDOW, x : x + WINDOW]
        middle = [(part.sum(1 - i) @ np.arange(WINDOW)) / max(part.sum(), 1e-9) for i in (0, 1)]
        window = [round(at + m - WINDOW // 2) for at, m in zip((y, x), middle, strict=True)]
        found.append(tuple(min(max(at, 0), SIDE - 1) for at in window))
    return found


def _near(window: tuple[int, int]) -> Bool[np.ndarray, "y x"]:
    """Which windows lie within a third of a window of one."""
    rows, columns = (np.abs(np.arange(SIDE) - at) <= WINDOW // 3 for at in window)
    return rows[:, None] & columns


def _match(
    view: View, frame: int, thing: int, variants: slice, rough: Float[np.ndarray, "n t"]
) -> Match:
    """The best match of a thing near one of the peaks of its rough gains: of two red objects each
    may roughly be the other."""
    peaks = _peaks(view, frame, rough)
    found = [matching.match(view, frame, thing, variants, peak) for peak in peaks]
    return max(found, key=lambda match: match.gain)


class _Track(NamedTuple):
    """An object in every frame: its gain, its misfit, its centre (x, y) in frame widths, and the
    pixels of the view that it covers, with those beside them."""

    gain: Float[np.ndarray, "f"]
    misfit: Float[np.ndarray, "f"]
    centre: Float[np.ndarray, "f 2"]
    covered: Bool[np.ndarray, "f h w"]


def _follow(view: View, found: _Found) -> _Track:
    variants = slice(max(found.diameter - 1, 0) * len(PHASES), (found.diameter + 2) * len(PHASES))
    weights = matching.rough_weights(view, matching.templates().smooth[found.thing, variants])
    matches, covered = [], np.zeros(view.weight.shape, bool)
    for frame in range(len(view.pixels)):
        rough = matching.rough_gains(view, frame, weights)
        match = _match(view, frame, found.thing, variants, rough)
        match = matching.refined(view, frame, found.thing, match)
        y, x = match.window
        covered[frame, y : y + WINDOW, x : x + WINDOW] = match.covered > matching.COVERED
        matches.append(match)
    return _Track(
        gain=np.array([match.gain for match in matches]),
        misfit=np.array([match.misfit for match in matches]),
        centre=np.array([match.centre + match.window[::-1] - MARGIN for match in matches]) / HALF,
        covered=_grown(covered),
    )


def _grown(mask: Bool[np.ndarray, "f h w"]) -> Bool[np.ndarray, "f h w"]:
    """The mask and the pixels beside it."""
    padded = np.pad(mask, ((0, 0), (1, 1), (1, 1)))
    rows = padded[:, :-2] | padded[:, 1:-1] | padded[:, 2:]
    return rows[:, :, :-2] | rows[:, :, 1:-1] | rows[:, :, 2:]


def _reading(track: _Track, found: _Found, background: str) -> Reading:
    thing, frames = THINGS[found.thing], len(track.centre)
    steady = (track.gain >= MIN_TRACKED * np.median(track.gain)).all()
    if not (found.agreed and steady and np.median(track.misfit) <= MAX_MISFIT):
        return NOTHING._replace(background=background)
    motion = direction(np.arange(frames), track.centre, frames) if frames > 1 else ""
    places = _places(*track.centre[0]) if frames == 1 else ()
    return Reading(thing.object, thing.color, places, motion, background)


def _places(x: float, y: float) -> tuple[str, ...]:
    """The places that a centre may be in, to within TOLERANCE."""
    around = (-TOLERANCE, 0, TOLERANCE)
    found = {place(x + right, y + down) for right in around for down in around}
    return tuple(name for name in PLACES if name in found)


def agree(said: Sequence[str], reading: Reading) -> tuple[bool, ...]:
    """For each of the factors of a caption's object whether a reading agrees with it."""
    thing, color, where, motion, background = said
    return (
        thing == reading.object,
        color == reading.color,
        where in reading.places,
        motion == reading.motion,
        background == reading.background,
    )


SCENES = Vocabulary(factors=FACTORS, parse=parse_caption, read=read, nothing=NOTHING, agree=agree)
