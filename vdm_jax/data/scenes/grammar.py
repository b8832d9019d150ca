"""What scenes may show and how captions say it: vocabulary, captions and the held-out combinations.

A frame's caption says what is where: "a cat on the left of a green meadow". A clip's caption also
says how it moves: "a cat moving right over a green meadow". Two objects are joined by "and".
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from vdm_jax.data.shapes import COLORS, DIRECTIONS, SHAPES

# One sprite each: `sprites/NOUN.png`.
SPRITES = (
    "cat",
    "dog",
    "rabbit",
    "fox",
    "bear",
    "panda",
    "lion",
    "cow",
    "pig",
    "frog",
    "monkey",
    "chicken",
    "penguin",
    "owl",
    "fish",
    "whale",
    "crab",
    "octopus",
    "turtle",
    "snail",
    "butterfly",
    "bee",
    "ladybird",
    "apple",
    "banana",
    "strawberry",
    "watermelon",
    "pineapple",
    "carrot",
    "mushroom",
    "pizza",
    "burger",
    "doughnut",
    "car",
    "bus",
    "rocket",
    "sailboat",
    "balloon",
    "football",
    "umbrella",
    "clock",
    "guitar",
    "gift",
    "sunflower",
    "rose",
    "tree",
    "house",
    "robot",
)
# By the name in data and scores, the phrase in captions.
BACKGROUNDS = {
    "meadow": "a green meadow",
    "sea": "a blue sea",
    "desert": "a sandy desert",
    "sky": "a cloudy sky",
    "night": "a starry night",
    "brick": "a brick wall",
    "wood": "a wooden floor",
    "snow": "a snowy field",
    "road": "a grey road",
    "forest": "a dark forest",
}
# The nine places, rows from the top; `place` names the one of a centre.
PLACES = {
    "top left": "at the top left",
    "top": "at the top",
    "top right": "at the top right",
    "left": "on the left",
    "middle": "in the middle",
    "right": "on the right",
    "bottom left": "at the bottom left",
    "bottom": "at the bottom",
    "bottom right": "at the bottom right",
}
BORDERS = (0.4, 0.6)  # between left, middle and right, and top, middle and bottom, in frame widths
MOTIONS = tuple(DIRECTIONS)
SPLITS = ("train", "held_out")


class Thing(NamedTuple):
    """An object: a sprite, whose `color` is "", or a coloured shape."""

    object: str
    color: str

    @property
    def phrase(self) -> str:
        """For example "an apple" or "a red circle"."""
        words = f"{self.color} {self.object}".strip()
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


THINGS: tuple[Thing, ...] = tuple(
    [Thing(noun, "") for noun in SPRITES]
    + [Thing(shape, color) for shape in SHAPES for color in COLORS]
)


class Item(NamedTuple):
    """One object of a caption; what the caption leaves open is ""."""

    object: str
    color: str
    place: str
    motion: str
    background: str

    @property
    def thing(self) -> Thing:
        return Thing(self.object, self.color)


def place(x: float, y: float) -> str:
    """The place of an object's centre, in frame widths from the left and from the top."""
    column, row = (sum(at >= border for border in BORDERS) for at in (x, y))
    return tuple(PLACES)[3 * row + column]


def make_caption(items: Sequence[Item]) -> str:
    """The caption of a clip, whose items all have a motion, or of a frame, all with a place."""
    background = BACKGROUNDS[items[0].background]
    if items[0].motion:
        said = [f"{item.thing.phrase} moving {item.motion}" for item in items]
        return f"{' and '.join(said)} over {background}"
    said = [f"{item.thing.phrase} {PLACES[item.place]}" for item in items]
    return f"{' and '.join(said)} of {background}"


def _either(words: Sequence[str]) -> str:
    return "|".join(sorted(words, key=len, reverse=True))  # a longer word before its beginning


_BACKGROUND = rf"(?P<background>{_either(list(BACKGROUNDS.values()))})"
_THING = rf"an? (?:(?P<color>{_either(list(COLORS))}) )?(?P<object>{_either(SPRITES + SHAPES)})"
_CLIP = re.compile(rf"(?P<items>.+) over {_BACKGROUND}")
_FRAME = re.compile(rf"(?P<items>.+) of {_BACKGROUND}")
_MOVING = re.compile(rf"{_THING} moving (?P<motion>{_either(MOTIONS)})")
_PLACED = re.compile(rf"{_THING} (?P<place>{_either(list(PLACES.values()))})")


def parse_caption(caption: str) -> tuple[Item, ...]:
    """The inverse of `make_caption`; a caption of another form raises ValueError."""
    text = caption.strip().lower()
    for whole, part in ((_CLIP, _MOVING), (_FRAME, _PLACED)):
        if (found := whole.fullmatch(text)) is None:
            continue
        matches = [part.fullmatch(said) for said in found["items"].split(" and ")]
        if all(matches):
            items = tuple(_item(match.groupdict(), found["background"]) for match in matches)
            if all(item.thing in THINGS for item in items):
                return items
    raise ValueError(
        f"caption={caption!r} is neither of the form 'OBJECT PLACE[ and OBJECT PLACE] of "
        "BACKGROUND' nor 'OBJECT moving DIRECTION[ and ...] over BACKGROUND', with objects "
        f"a COLOUR SHAPE ({', '.join(COLORS)}; {', '.join(SHAPES)}) or a(n) {', '.join(SPRITES)}; "
        f"places {', '.join(PLACES.values())}; directions {', '.join(MOTIONS)}; "
        f"backgrounds {', '.join(BACKGROUNDS.values())}"
    )


def _item(groups: dict[str, str | None], background: str) -> Item:
    places = {phrase: name for name, phrase in PLACES.items()}
    backgrounds = {phrase: name for name, phrase in BACKGROUNDS.items()}
    return Item(
        object=groups["object"] or "",
        color=groups["color"] or "",
        place=places.get(groups.get("place") or "", ""),
        motion=groups.get("motion") or "",
        background=backgrounds[background],
    )


def held_out_background(thing: Thing, background: str) -> bool:
    """Whether a thing on a background is held out: two of the ten backgrounds for each thing."""
    return (THINGS.index(thing) + list(BACKGROUNDS).index(background)) % 5 == 0


def held_out_motion(thing: Thing, motion: str) -> bool:
    """Whether a thing with a motion is held out: one of the four motions for each thing."""
    return (THINGS.index(thing) // 5 + MOTIONS.index(motion)) % 4 == 0


def things(split: str, background: str) -> tuple[Thing, ...]:
    """What a split may show on a background: held-out combinations in `held_out` only."""
    _check(split)
    wanted = split == "held_out"
    return tuple(t for t in THINGS if held_out_background(t, background) == wanted)


def motions(split: str, thing: Thing) -> tuple[str, ...]:
    """How a thing may move in a split: held-out combinations in `held_out` only."""
    _check(split)
    wanted = split == "held_out"
    return tuple(m for m in MOTIONS if held_out_motion(thing, m) == wanted)


def _check(split: str) -> None:
    if split not in SPLITS:
        raise ValueError(f"split={split!r}: allowed are {', '.join(SPLITS)}")
