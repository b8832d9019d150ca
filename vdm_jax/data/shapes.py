"""The moving-shapes world: combinations, captions and a deterministic numpy renderer.

One or two coloured shapes move uniformly over a black background and stay wholly inside the
frame. Everything here is a pure function of its arguments; the TFDS builder that writes the clips
to disk is `vdm_jax.data.moving_shapes`.
"""

import dataclasses
import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, UInt8

COLORS = {
    "red": (255, 0, 0),
    "green": (0, 255, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 255, 0),
    "magenta": (255, 0, 255),
    "cyan": (0, 255, 255),
}
SHAPES = ("circle", "square", "triangle")
# Unit steps (x, y); y grows downwards, as rows do.
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
_OPPOSITE = {"left": "right", "right": "left", "up": "down", "down": "up"}

SCANLINES = 8  # vertical supersampling; horizontal coverage is exact


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """How large and fast objects are, in frame widths: every resolution shows the same world."""

    radius: tuple[float, float]  # least and greatest half side of an object's bounding box
    margin: float  # least distance of a bounding box from the frame's border
    gap: float  # least distance between two bounding boxes
    displacement: float  # least over the whole clip: the direction can always be seen


# By number of objects. Two must be smaller and slower, or perpendicular paths never fit.
ROOM = {
    1: Room(radius=(3.0 / 16, 4.2 / 16), margin=0.5 / 16, gap=0.0, displacement=0.3),
    2: Room(radius=(2.25 / 16, 2.75 / 16), margin=0.25 / 16, gap=0.5 / 16, displacement=0.25),
}


class Combination(NamedTuple):
    """What one object is and does."""

    color: str
    shape: str
    direction: str

    @property
    def phrase(self) -> str:
        """For example "a red circle moving left"."""
        return f"a {self.color} {self.shape} moving {self.direction}"


COMBINATIONS: tuple[Combination, ...] = tuple(
    Combination(*parts) for parts in itertools.product(COLORS, SHAPES, DIRECTIONS)
)
HELD_OUT: tuple[Combination, ...] = COMBINATIONS[4::5]
TRAIN: tuple[Combination, ...] = tuple(c for c in COMBINATIONS if c not in HELD_OUT)
SPLITS: dict[str, tuple[Combination, ...]] = {"train": TRAIN, "held_out": HELD_OUT}

_PHRASE = re.compile(
    rf"a ({'|'.join(COLORS)}) ({'|'.join(SHAPES)}) moving ({'|'.join(DIRECTIONS)})"
)


def scenes(split: str, num_objects: int = 1) -> list[tuple[Combination, ...]]:
    """Every scene a split may show: ordered tuples of combinations of distinct colours.

    All objects of a `train` scene come from `TRAIN` and all of a `held_out` scene from `HELD_OUT`.
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: allowed are {', '.join(SPLITS)}")
    if num_objects not in ROOM:
        raise ValueError(f"num_objects={num_objects}: allowed are {', '.join(map(str, ROOM))}")
    return [
        scene
        for scene in itertools.product(SPLITS[split], repeat=num_objects)
        if len({c.color for c in scene}) == num_objects
    ]


def make_caption(scene: Sequence[Combination]) -> str:
    """The caption of a scene: its objects' phrases joined by " and "."""
    return " and ".join(c.phrase for c in scene)


def parse_caption(caption: str) -> tuple[Combination, ...]:
    """The inverse of `make_caption`; a caption of another form raises ValueError."""
    matches = [_PHRASE.fullmatch(part) for part in caption.strip().lower().split(" and ")]
    if not all(matches):
        raise ValueError(
            f"caption={caption!r} is not of the form 'a COLOUR SHAPE moving DIRECTION[ and ...]' "
            f"with colours {', '.join(COLORS)}; shapes {', '.join(SHAPES)}; "
            f"directions {', '.join(DIRECTIONS)}"
        )
    return tuple(Combination(*m.groups()) for m in matches)


def turned(caption: str) -> str:
    """The caption with every direction turned around."""
    parts = [part._replace(direction=_OPPOSITE[part.direction]) for part in parse_caption(caption)]
    return make_caption(parts)


def captions(split: str, num_objects: int = 1) -> list[str]:
    """Every caption of a split, in the order of `scenes`."""
    return [make_caption(scene) for scene in scenes(split, num_objects)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Motion:
    """Where the k objects of n clips are, in frame widths (x to the right, y downwards)."""

    radius: Float[np.ndarray, "n k"]  # half the side of the bounding box
    start: Float[np.ndarray, "n k 2"]  # centre in the first frame
    displacement: Float[np.ndarray, "n k 2"]  # centre in the last frame minus `start`

    def centres(self, num_frames: int) -> Float[np.ndarray, "n k f 2"]:
        """Centres in every frame."""
        time = np.linspace(0.0, 1.0, num_frames)[:, None]
        return self.start[:, :, None] + time * self.displacement[:, :, None]


def draw_motion(rng: np.random.Generator, steps: Int[np.ndarray, "n k 2"]) -> Motion:
    """Draws sizes, places and speeds for objects that move along the unit vectors `steps`.

    Objects stay inside the frame and, when there are several, apart from each other throughout.
    """
    n, k, _ = steps.shape
    parts = {
        "radius": np.zeros((n, k)),
        "start": np.zeros((n, k, 2)),
        "displacement": np.zeros((n, k, 2)),
    }
    todo = np.arange(n)
    while todo.size:
        # Perpendicular paths seldom fit: many proposals a round when few clips are left.
        tries = 1 if k == 1 else max(1, 2048 // todo.size)
        motion = _propose(rng, np.repeat(steps[todo], tries, axis=0))
        fits = _apart(motion, ROOM[k].gap).reshape(todo.size, tries)
        found = fits.any(1)
        picked = (np.arange(todo.size) * tries + fits.argmax(1))[found]
        for name, values in parts.items():
            values[todo[found]] = getattr(motion, name)[picked]
        todo = todo[~found]
    return Motion(**parts)


def _propose(rng: np.random.Generator, steps: Int[np.ndarray, "n k 2"]) -> Motion:
    """Motion inside the frame, objects independent of each other."""
    n, k, _ = steps.shape
    room = ROOM[k]
    radius = rng.uniform(*room.radius, size=(n, k))
    longest = 1.0 - 2.0 * (radius + room.margin)
    distance = rng.uniform(room.displacement, longest)
    displacement = distance[..., None] * steps
    # The bounding box of the whole path must fit: its low corner is uniform in what is left.
    free = longest[..., None] - np.abs(displacement)
    low = radius[..., None] + room.margin + rng.uniform(size=(n, k, 2)) * free
    return Motion(radius=radius, start=low - np.minimum(displacement, 0), displacement=displacement)


def _apart(motion: Motion, gap: float, checks: int = 33) -> Bool[np.ndarray, "n"]:
    """Which clips keep every two objects' bounding boxes at least `gap` apart."""
    n, k = motion.radius.shape
    centres = motion.centres(checks)
    fits = np.ones(n, bool)
    for i, j in itertools.combinations(range(k), 2):
        distance = np.abs(centres[:, i] - centres[:, j]).max(-1)  # Chebyshev: boxes, not discs
        fits &= distance.min(-1) >= motion.radius[:, i] + motion.radius[:, j] + gap
    return fits


def coverage(
    shape: Int[np.ndarray, "n"],
    centre: Float[np.ndarray, "n 2"],
    radius: Float[np.ndarray, "n"],
    size: int,
) -> Float[np.ndarray, "n h w"]:
    """The share of every pixel that each shape covers; lengths in pixels.

    All shapes are symmetric about a vertical axis, so a shape is its half width as a function of
    height: the overlap of a scan line with a pixel is exact, and `SCANLINES` lines are averaged.
    A shape's bounding box is a square of side `2 * radius`; triangles point upwards.
    """
    centre, radius = centre.astype(np.float32), radius.astype(np.float32)[:, None]
    lines = ((np.arange(size * SCANLINES) + 0.5) / SCANLINES).astype(np.float32)
    y = lines - centre[:, 1:]  # [n, lines]
    circle, square = np.sqrt(np.maximum(radius**2 - y**2, 0)), np.broadcast_to(radius, y.shape)
    half_width = np.choose(np.asarray(shape)[:, None], [circle, square, (y + radius) / 2])
    half_width = np.where(np.abs(y) <= radius, half_width, 0)[:, :, None]
    left = (np.arange(size, dtype=np.float32) - centre[:, :1])[:, None, :]  # pixels' left edges
    out = np.empty((len(centre), size, size), np.float32)
    chunk = max(1, 2**17 // (size * size * SCANLINES))  # what stays in the cache
    for i in range(0, len(centre), chunk):
        half, edge = half_width[i : i + chunk], left[i : i + chunk]
        overlap = np.minimum(edge + 1, half)
        overlap -= np.maximum(edge, -half)
        np.maximum(overlap, 0, out=overlap)
        out[i : i + chunk] = overlap.reshape(-1, size, SCANLINES, size).mean(2)
    return out


def render(
    scene: Sequence[Sequence[Combination]], motion: Motion, size: int, num_frames: int
) -> UInt8[np.ndarray, "n f h w 3"]:
    """Draws n clips of `size` by `size` pixels on black, anti-aliased."""
    n, k = motion.radius.shape
    shape = np.array([[SHAPES.index(c.shape) for c in objects] for objects in scene])
    color = np.array([[COLORS[c.color] for c in objects] for objects in scene], np.uint8) // 255
    centres = motion.centres(num_frames) * size
    video = np.zeros((n, num_frames, size, size, 3), np.uint8)
    for i in range(k):
        mask = coverage(
            np.repeat(shape[:, i], num_frames),
            centres[:, i].reshape(-1, 2),
            np.repeat(motion.radius[:, i] * size, num_frames),
            size,
        )
        mask = np.round(255 * mask).astype(np.uint8).reshape(n, num_frames, size, size, 1)
        # Adding cannot overflow: boxes are apart, so no pixel is covered by more than a whole.
        video += mask * color[:, i, None, None, None, :]
    return video


def render_clips(
    scene: Sequence[Sequence[Combination]],
    *,
    size: int,
    num_frames: int,
    seed: int | Sequence[int] = 0,
) -> UInt8[np.ndarray, "n f h w 3"]:
    """Draws one clip a scene with motion drawn from `seed`: the same arguments, the same bytes."""
    steps = np.array([[DIRECTIONS[c.direction] for c in objects] for objects in scene])
    motion = draw_motion(np.random.default_rng(seed), steps)
    return render(scene, motion, size, num_frames)
