"""What the judge of scenes compares pixels with: palettes of backgrounds, and templates of things.

Frames are compared at half their size. A pixel costs its squared distance to the colour that
explains it, over `SPREAD**2` and at most `MOST_COST`. The gain of a thing at a place is what its
pixels cost as background minus what they cost as the thing.
"""

import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy.lib.stride_tricks import sliding_window_view

from vdm_jax.data.scenes import backgrounds, things
from vdm_jax.data.scenes.grammar import BACKGROUNDS, THINGS

SIZE = 64  # pixels of a frame's sides
HALF = SIZE // 2
WINDOW = 15  # pixels: the largest thing and one more
MARGIN = 3  # pixels around the frame in which windows may lie
SIDE = HALF + 2 * MARGIN - WINDOW + 1  # windows along an axis
DIAMETERS = tuple(9.0 * (14.0 / 9.0) ** (step / 6) for step in range(7))  # 18 to 28 of the frame
PHASES = tuple((x, y) for y in (0.0, 0.5) for x in (0.0, 0.5))  # of centres between pixels
COVERED = 0.1  # least coverage of a thing's pixels
SPREAD = 0.1  # of colours from 0 to 1
MOST_COST = 8.0
_COLOURS = 24  # of a palette
_RENDERED = 8  # backgrounds that a palette is measured on
# Steps from a template to what lies between templates.
_SHIFTS = np.array([(x, y) for y in (-0.25, 0, 0.25) for x in (-0.25, 0, 0.25)])
_SCALES = (0.965, 1.0, 1.035)


def halved(pixels: Float[np.ndarray, "f h w 3"]) -> Float[np.ndarray, "f h2 w2 3"]:
    """Frames at half their size."""
    f, h, w, c = pixels.shape
    return pixels.reshape(f, h // 2, 2, w // 2, 2, c).mean((2, 4))


def smoothed(pixels: Float[np.ndarray, "n h w c"]) -> Float[np.ndarray, "n h w c"]:
    """Frames blurred a little: a template need not lie exactly on what it fits."""
    for axis in (1, 2):
        edge = [(1, 1) if at == axis else (0, 0) for at in range(4)]
        padded, size = np.pad(pixels, edge, mode="edge"), pixels.shape[axis]
        before, after = (np.take(padded, range(i, i + size), axis) for i in (0, 2))
        pixels = 0.5 * pixels + 0.25 * (before + after)
    return pixels


def squared_distances(
    pixels: Float[np.ndarray, "*n 3"], colors: Float[np.ndarray, "k 3"]
) -> Float[np.ndarray, "*n k"]:
    """Squared distances of pixels to colours."""
    own = np.einsum("...c,...c->...", pixels, pixels)[..., None]
    found = own - 2 * (pixels @ colors.T) + (colors**2).sum(-1)
    return np.maximum(found, 0)


# --- backgrounds ---------------------------------------------------------------------------------


class Palettes(NamedTuple):
    """Of each background the colours of its pixels, how frequent each is, and the least grain of a
    rendered one."""

    colors: Float[np.ndarray, "b k 3"]
    shares: Float[np.ndarray, "b k"]
    grain: Float[np.ndarray, "b"]


@functools.cache
def palettes() -> Palettes:
    """The palettes of `grammar.BACKGROUNDS`, in this order, measured on rendered ones."""
    colors, shares, grains = [], [], []
    for index, name in enumerate(BACKGROUNDS):
        rng = np.random.default_rng((0, index))
        drawn = np.stack([backgrounds.draw(name, rng, SIZE)[1] for _ in range(_RENDERED)])
        drawn = halved(np.round(drawn) / 255).astype(np.float32)
        everywhere = np.ones((1, HALF, HALF), bool)
        grains.append(min(grain(frame[None], everywhere) for frame in drawn))
        samples = drawn.reshape(-1, 3)
        palette = [samples[0]]  # each colour the one that is farthest from those before
        distance = ((samples - palette[0]) ** 2).sum(-1)
        while len(palette) < _COLOURS:
            palette.append(samples[distance.argmax()])
            distance = np.minimum(distance, ((samples - palette[-1]) ** 2).sum(-1))
        nearest = squared_distances(samples, np.stack(palette)).argmin(-1)
        colors.append(palette)
        shares.append(np.bincount(nearest, minlength=_COLOURS) / len(nearest))
    return Palettes(np.array(colors), np.array(shares, np.float32), np.array(grains))


def grain(pixels: Float[np.ndarray, "f h w 3"], within: Bool[np.ndarray, "f h w"]) -> float:
    """The mean difference of neighbours along rows and columns that both are `within`."""
    total, count = 0.0, 0
    for axis in (1, 2):
        step = np.abs(np.diff(pixels, axis=axis)).mean(-1)
        pairs = np.delete(within, -1, axis) & np.delete(within, 0, axis)
        total, count = total + float(step[pairs].sum()), count + int(pairs.sum())
    return total / max(count, 1)


# --- a clip --------------------------------------------------------------------------------------


class View(NamedTuple):
    """A clip at half size with a margin.

    Attributes:
      pixels: from 0 to 1.
      distance: squared, of each pixel to the background's palette; 1 where there is none.
      weight: 1 for pixels that count, 0 for the margin and for what is explained.
      mean: the background's mean colour.
      rough: what `rough_gains` reads of smoothed pixels.
    """

    pixels: Float[np.ndarray, "f h w 3"]
    distance: Float[np.ndarray, "f h w"]
    weight: Float[np.ndarray, "f h w"]
    mean: Float[np.ndarray, "3"]
    rough: Float[np.ndarray, "f h w 5"]

    def without(self, covered: Bool[np.ndarray, "f h w"]) -> "View":
        """The view in which the pixels of an object do not count any more."""
        return self._replace(weight=self.weight * ~covered)

    @property
    def cost(self) -> Float[np.ndarray, "f h w"]:
        """What it costs to explain each pixel as background."""
        return np.minimum(self.distance / SPREAD**2, MOST_COST) * self.weight


def make_view(pixels: Float[np.ndarray, "f h w 3"], background: int | None) -> View:
    """The view of halved frames over a background, by its number."""
    colors, shares, _ = palettes()
    mean = np.full(3, 0.5, np.float32)
    if background is not None:
        mean = shares[background] @ colors[background]

    def distance(pixels):
        if background is None:
            return np.ones(pixels.shape[:3], np.float32)
        return squared_distances(pixels, colors[background]).min(-1)

    smooth = smoothed(pixels)
    own = distance(smooth) - (smooth**2).sum(-1)
    rough = np.concatenate([own[..., None], smooth, np.ones_like(own)[..., None]], -1)
    margin = ((0, 0), (MARGIN, MARGIN), (MARGIN, MARGIN))
    return View(
        pixels=np.pad(pixels, (*margin, (0, 0))),
        distance=np.pad(distance(pixels), margin),
        weight=np.pad(np.ones(pixels.shape[:3], np.float32), margin),
        mean=mean,
        rough=np.pad(rough, (*margin, (0, 0))),
    )


# --- things --------------------------------------------------------------------------------------


class Templates(NamedTuple):
    """Every thing in every size and phase, in windows.

    Attributes:
      covered: how much of each pixel it covers.
      color: its colour, times that.
      smooth: coverage and colour smoothed, for `rough_gains`: red, green, blue, coverage.
      diameter: the number of its diameter.
      centre: (x, y) in the window.
    """

    covered: Float[np.ndarray, "n t p p"]
    color: Float[np.ndarray, "n t p p 3"]
    smooth: Float[np.ndarray, "n t p p 4"]
    diameter: Int[np.ndarray, "t"]
    centre: Float[np.ndarray, "t 2"]


@functools.cache
def templates() -> Templates:
    """The templates of `grammar.THINGS`, in this order."""
    centres = np.array(PHASES) + WINDOW / 2
    numbers = range(len(THINGS))
    drawn = np.stack([[_drawn(thing, centres, d) for d in DIAMETERS] for thing in numbers])
    drawn = drawn.reshape(len(THINGS), -1, WINDOW, WINDOW, 4)
    return Templates(
        covered=drawn[..., 3],
        color=drawn[..., :3],
        smooth=smoothed(drawn.reshape(-1, WINDOW, WINDOW, 4)).reshape(drawn.shape),
        diameter=np.repeat(np.arange(len(DIAMETERS)), len(PHASES)),
        centre=np.tile(centres, (len(DIAMETERS), 1)),
    )


def _drawn(
    thing: int, centres: Float[np.ndarray, "n 2"], diameter: float
) -> Float[np.ndarray, "n p p 4"]:
    """A thing in windows: its colour times coverage, and coverage, from 0 to 1."""
    windows = np.zeros((len(centres), WINDOW, WINDOW, 4), np.float32)
    patches, corners = things.resample(things.pictures()[thing], centres, diameter)
    for window, patch, (x, y) in zip(windows, patches, corners, strict=True):
        top, left = max(y, 0), max(x, 0)
        inside = patch[top - y : WINDOW - y, left - x : WINDOW - x] / 255
        window[top : top + len(inside), left : left + inside.shape[1]] = inside
    return windows


def rough_weights(view: View, smooth: Float[np.ndarray, "t p p 4"]) -> Float[np.ndarray, "t c"]:
    """What `rough_gains` multiplies pixels with, of smoothed templates over a view's background."""
    covered = smooth[..., 3:]
    drawn = smooth[..., :3] + (1 - covered) * view.mean
    own = np.einsum("tyxc,tyxc->tyx", drawn, drawn)[..., None]
    parts = np.concatenate([np.ones_like(own), 2 * drawn, -own], -1) * (covered > COVERED)
    return parts.reshape(len(parts), -1)


def rough_gains(
    view: View, frame: int, weights: Float[np.ndarray, "t c"]
) -> Float[np.ndarray, "n t"]:
    """Of templates at all windows: the squared distances of their pixels, smoothed, to the
    background's colours minus those to their own, without a limit. A matrix product is fast.

    -inf where less than a third of a window counts: nothing is gained there, and nothing lost.
    """
    parts = view.rough[frame] * view.weight[frame][..., None]
    windows = np.moveaxis(sliding_window_view(parts, (WINDOW, WINDOW), (0, 1)), 2, -1)
    windows = windows.reshape(SIDE**2, -1)
    gains = windows @ weights.T
    gains[np.einsum("nc->n", windows[:, 4::5]) < WINDOW**2 / 3] = -np.inf
    return gains


class Match(NamedTuple):
    """Where a thing is in a frame.

    Attributes:
      gain: see the module.
      misfit: the mean cost of its pixels over MOST_COST.
      template: the number of the nearest template of this thing.
      window: (y, x) of its window, in the view.
      centre: (x, y) in the window.
      covered: how much of each pixel of the window it covers.
    """

    gain: float
    misfit: float
    template: int
    window: tuple[int, int]
    centre: Float[np.ndarray, "2"]
    covered: Float[np.ndarray, "p p"]


def match(view: View, frame: int, thing: int, variants: slice, near: tuple[int, int]) -> Match:
    """The best place of a thing, in some of its sizes and phases, within a pixel of a window."""
    bank = templates()
    covered = bank.covered[thing, variants].reshape(-1, WINDOW**2)
    drawn = bank.color[thing, variants].reshape(*covered.shape, 3)
    top, left = (min(max(at - 1, 0), SIDE - 3) for at in near)
    box = (frame, slice(top, top + WINDOW + 2), slice(left, left + WINDOW + 2))

    def windows(array):
        found = sliding_window_view(array[box], (WINDOW, WINDOW), (0, 1))
        return found.reshape(9, 1, *found.shape[2:-2], WINDOW**2)

    pixels = np.moveaxis(windows(view.pixels), 2, -1)
    drawn = drawn + (1 - covered)[..., None] * view.mean
    gain, misfit = _fit(pixels, windows(view.weight), windows(view.cost), covered, drawn)
    at, number = np.unravel_index(int(gain.argmax()), gain.shape)
    template = range(len(bank.diameter))[variants][number]
    return Match(
        gain=float(gain[at, number]),
        misfit=float(misfit[at, number]),
        template=template,
        window=(top + int(at) // 3, left + int(at) % 3),
        centre=bank.centre[template],
        covered=bank.covered[thing, template],
    )


def refined(view: View, frame: int, thing: int, rough: Match) -> Match:
    """The best of a match and what lies a quarter of a pixel or some percents of size from it."""
    (y, x), parts = rough.window, []
    for array in (view.pixels, view.weight, view.cost):
        part = array[frame, y : y + WINDOW, x : x + WINDOW]
        parts.append(part.reshape(1, 1, WINDOW**2, *part.shape[2:]))
    centres, best = rough.centre + _SHIFTS, rough
    for scale in _SCALES:
        drawn = _drawn(thing, centres, scale * DIAMETERS[templates().diameter[rough.template]])
        pixels = drawn.reshape(len(drawn), WINDOW**2, 4)
        covered = pixels[..., 3]
        colors = pixels[..., :3] + (1 - covered)[..., None] * view.mean
        gain, misfit = _fit(*parts, covered, colors)
        top = int(gain.argmax())
        if gain[0, top] > best.gain:
            best = rough._replace(
                gain=float(gain[0, top]),
                misfit=float(misfit[0, top]),
                centre=centres[top],
                covered=drawn[top, ..., 3],
            )
    return best


def _fit(
    pixels: Float[np.ndarray, "n 1 p 3"],
    weight: Float[np.ndarray, "n 1 p"],
    ground: Float[np.ndarray, "n 1 p"],
    covered: Float[np.ndarray, "t p"],
    drawn: Float[np.ndarray, "t p 3"],
) -> tuple[Float[np.ndarray, "n t"], Float[np.ndarray, "n t"]]:
    """Gain and misfit of things, `drawn` over a background, in windows of pixels that `weight`
    counts and that cost `ground` as background."""
    steps = (pixels[..., color] - drawn[..., color] for color in range(3))
    cost = np.minimum(sum(step * step for step in steps) * (1 / SPREAD**2), MOST_COST)
    seen = weight * (covered > COVERED)
    own = np.einsum("ntp,ntp->nt", seen, cost)  # far faster than a sum over a last axis
    gain = np.einsum("ntp,nup->nt", seen, ground) - own
    return gain, own / np.maximum(np.einsum("ntp->nt", seen), 1) / MOST_COST
