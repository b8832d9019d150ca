"""Scenes as numbers and as pixels: what moves where over what, and the renderer.

Scene i of a split is a function of (seed, split, i). An object that is nearer hides what is
behind it. Every picture comes with what is true of it: masks, depth, edges, boxes and captions.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, UInt8

from vdm_jax.data.scenes import backgrounds, grammar, things
from vdm_jax.data.scenes.grammar import BACKGROUNDS, SPLITS, THINGS, Item, Thing
from vdm_jax.data.shapes import DIRECTIONS


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """How large and fast objects are, in frame widths."""

    diameter: tuple[float, float]  # of the square around an object
    margin: float = 0.5 / 64  # least distance of that square from the frame's border
    displacement: float = 0.3  # least over the whole clip
    hidden: float = 0.25  # most of a square that another covers, in any frame
    clear: float = 0.5  # least share of the frames in which two squares do not touch


# By number of objects.
ROOM = {1: Room(diameter=(20 / 64, 28 / 64)), 2: Room(diameter=(18 / 64, 24 / 64))}
_PROPOSALS = 16  # of the paths of two objects, at a time
_FLOOR_DEPTH = 127  # the background's depth at the lower border
_OBJECT_DEPTH = (160, 255)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scene:
    """A clip before it is drawn. Lengths are in frame widths, x to the right and y downwards.

    Attributes:
      background: a name of `grammar.BACKGROUNDS`.
      things, motions: of the k objects, in the order of the caption.
      diameter: side of the square that is an object's picture.
      centres: middles of the pictures.
      depth: of each object, from 0, far, to 255, near; no two are equal.
      texture: the seed of the background's texture.
    """

    background: str
    things: tuple[Thing, ...]
    motions: tuple[str, ...]
    diameter: Float[np.ndarray, "k"]
    centres: Float[np.ndarray, "k f 2"]
    depth: UInt8[np.ndarray, "k"]
    texture: tuple[int, ...]

    @property
    def caption(self) -> str:
        """The clip's caption."""
        return grammar.make_caption(
            [
                Item(*thing, "", motion, self.background)
                for thing, motion in zip(self.things, self.motions, strict=True)
            ]
        )

    @property
    def frame_captions(self) -> list[str]:
        """The caption of every frame alone."""
        return [
            grammar.make_caption(
                [
                    Item(*thing, grammar.place(*centre), "", self.background)
                    for thing, centre in zip(self.things, centres, strict=True)
                ]
            )
            for centres in np.moveaxis(self.centres, 1, 0)
        ]

    @property
    def boxes(self) -> Float[np.ndarray, "f k 4"]:
        """(left, top, right, bottom) of every object, what is hidden included."""
        extents = things.extents()[[THINGS.index(thing) for thing in self.things]]
        corner = self.centres - self.diameter[:, None, None] / 2
        scaled = extents[:, None] * self.diameter[:, None, None]
        return np.moveaxis(np.tile(corner, 2) + scaled, 0, 1).astype(np.float32)


class Clip(NamedTuple):
    """A rendered scene.

    Attributes:
      video: pixels.
      mask: the number of the object that is seen at each pixel, from 1, in the caption's order; 0
        is the background.
      depth: from 0, far, to 255, near. The background is a ramp from 0 at the top to 127 at the
        bottom.
      edges: 255 at the pixels of an object that touch something farther away, else 0.
    """

    video: UInt8[np.ndarray, "f h w 3"]
    mask: UInt8[np.ndarray, "f h w 1"]
    depth: UInt8[np.ndarray, "f h w 1"]
    edges: UInt8[np.ndarray, "f h w 1"]


def draw_scene(seed: int, split: str, index: int, *, num_objects: int, num_frames: int) -> Scene:
    """Scene `index` of a split. Raises ValueError for an unknown split or number of objects."""
    if num_objects not in ROOM:
        raise ValueError(f"num_objects={num_objects}: allowed are {', '.join(map(str, ROOM))}")
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: allowed are {', '.join(SPLITS)}")
    key = (seed, SPLITS.index(split), index)
    rng = np.random.default_rng(key)
    background = tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
    allowed = grammar.things(split, background)
    chosen = [allowed[i] for i in rng.choice(len(allowed), num_objects, replace=False)]
    motions = []
    for thing in chosen:
        motions.append(str(rng.choice(grammar.motions(split, thing))))
    diameter, centres = _paths(rng, motions, num_frames)
    depth = rng.choice(np.arange(*_OBJECT_DEPTH, 8), num_objects, replace=False)
    return Scene(
        background=background,
        things=tuple(chosen),
        motions=tuple(motions),
        diameter=diameter,
        centres=centres,
        depth=depth.astype(np.uint8),
        texture=(*key, 1),
    )


def _paths(
    rng: np.random.Generator, motions: list[str], num_frames: int
) -> tuple[Float[np.ndarray, "k"], Float[np.ndarray, "k f 2"]]:
    """Sizes and uniform paths inside the frame that hide little of each other."""
    room = ROOM[len(motions)]
    steps = np.array([DIRECTIONS[motion] for motion in motions])
    n = 1 if len(motions) == 1 else _PROPOSALS
    while True:
        diameter = rng.uniform(*room.diameter, size=(n, len(motions)))
        longest = 1 - diameter - 2 * room.margin
        displacement = rng.uniform(room.displacement, longest)[..., None] * steps
        free = longest[..., None] - np.abs(displacement)
        low = (diameter / 2 + room.margin)[..., None] + rng.random((n, len(motions), 2)) * free
        start = low - np.minimum(displacement, 0)
        time = np.linspace(0, 1, num_frames)[:, None]
        centres = start[:, :, None] + time * displacement[:, :, None]
        fits = np.flatnonzero(_mostly_seen(diameter, centres, room))
        if fits.size:
            return diameter[fits[0]], centres[fits[0]]


def _mostly_seen(diameter: np.ndarray, centres: np.ndarray, room: Room) -> np.ndarray:
    """Which proposals keep to `room.hidden` and `room.clear`."""
    if diameter.shape[1] == 1:
        return np.ones(len(diameter), bool)
    sides = diameter[:, None, :, None]
    distance = np.abs(centres[:, 0] - centres[:, 1])[:, :, None]  # [n, f, 1, 2]
    shared = np.clip(sides.sum(2, keepdims=True) / 2 - distance, 0, sides.min(2, keepdims=True))
    share = shared.prod(-1)[..., 0] / diameter.min(1)[:, None] ** 2
    return (share.max(1) <= room.hidden) & ((share == 0).mean(1) >= room.clear)


def render(scene: Scene, size: int) -> Clip:
    """Draws a scene with `size` by `size` pixels, anti-aliased."""
    frames = scene.centres.shape[1]
    rng = np.random.default_rng(scene.texture)
    _, ground = backgrounds.draw(scene.background, rng, size)
    # With a margin of one pixel that is cut off: a patch is up to one pixel larger than its object.
    video = np.zeros((frames, size + 2, size + 2, 3), np.float32)
    video[:, 1:-1, 1:-1] = ground
    mask = np.zeros(video.shape[:3], np.uint8)
    for k in np.argsort(scene.depth):  # far ones first
        picture = things.pictures()[THINGS.index(scene.things[k])]
        patches, corner = things.resample(
            picture, scene.centres[k] * size, scene.diameter[k] * size
        )
        side = patches.shape[1]
        solid = patches[..., 3] >= 127.5
        kept = 1 - patches[..., 3:] / np.float32(255)
        for f, (x, y) in enumerate(corner + 1):
            below = video[f, y : y + side, x : x + side]
            below *= kept[f]
            below += patches[f, ..., :3]
            mask[f, y : y + side, x : x + side][solid[f]] = k + 1
    mask = mask[:, 1:-1, 1:-1]
    floor = np.round(np.linspace(0, _FLOOR_DEPTH, size)).astype(np.uint8)
    depth = np.concatenate([[0], scene.depth]).astype(np.uint8)[mask]
    depth = np.where(mask == 0, floor[:, None], depth)
    return Clip(
        video=np.minimum(np.round(video[:, 1:-1, 1:-1]), 255).astype(np.uint8),
        mask=mask[..., None],
        depth=depth[..., None],
        edges=outlines(mask, depth)[..., None],
    )


def outlines(
    mask: UInt8[np.ndarray, "f h w"], depth: UInt8[np.ndarray, "f h w"]
) -> UInt8[np.ndarray, "f h w"]:
    """255 at the pixels of an object that touch something else, farther away, along rows or
    columns."""
    edge = np.zeros(mask.shape, bool)
    near, far = (slice(1, None), slice(None, -1)), (slice(None, -1), slice(1, None))
    for one, other in (near, far):
        for axis in ((slice(None),), (slice(None), slice(None))):  # before rows, before columns
            here, there = (*axis, one), (*axis, other)
            edge[here] |= (mask[here] != mask[there]) & (depth[here] > depth[there])
    return np.where(edge & (mask > 0), np.uint8(255), np.uint8(0))
