"""The 400 actions of Kinetics: their names in the order of I3D's logits, and how often it is right.

The names are in `kinetics400.txt`, a line a class: alphabetical, as the published network was
trained (Kay et al. 2017, appendix; Carreira & Zisserman 2017).
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Int, Shaped

_NAMES = Path(__file__).with_name("kinetics400.txt")
_SHOWN = 3  # unknown captions of an error


@functools.cache
def class_names() -> tuple[str, ...]:
    """The names of the 400 classes; number i is logit i of `i3d.I3D`."""
    return tuple(_NAMES.read_text(encoding="utf-8").splitlines())


def classes(captions: Sequence[str]) -> Int[np.ndarray, "n"]:
    """The numbers of the classes that the captions name, int64.

    Upper case, brackets, hyphens and underscores make no difference: "hurling_sport" is "hurling
    (sport)". Raises ValueError naming captions that are no class.
    """
    numbers = {_plain(name): number for number, name in enumerate(class_names())}
    unknown = [text for text in dict.fromkeys(captions) if _plain(text) not in numbers]
    if unknown or not captions:
        shown = ", ".join(map(repr, unknown[:_SHOWN])) + ", ..." * (len(unknown) > _SHOWN)
        raise ValueError(
            f"captions {shown or 'are missing'}: must be names of Kinetics-400's classes, such as "
            f"{class_names()[0]!r} (vdm_jax/evaluation/{_NAMES.name})"
        )
    return np.array([numbers[_plain(text)] for text in captions])


def among_first(
    logits: Shaped[np.ndarray, "n classes"], numbers: Int[np.ndarray, "n"], k: int
) -> Bool[np.ndarray, "n"]:
    """Which rows have fewer than `k` other logits as large as that of their class.

    The mean is top-k accuracy. A tie counts against the class, so a network that says the same of
    all classes has none right. Raises ValueError for other shapes, logits that are not finite,
    numbers that are no class, and k that is not from 1 to below the number of classes.
    """
    logits, numbers = np.asarray(logits), np.asarray(numbers)
    if logits.ndim != 2 or numbers.shape != logits.shape[:1] or not len(numbers):
        shapes = f"logits {list(logits.shape)}, numbers {list(numbers.shape)}"
        raise ValueError(f"{shapes}: must be [n, classes] and [n], not empty")
    count = logits.shape[1]
    if not np.isfinite(logits).all():
        raise ValueError(f"logits {list(logits.shape)}: must be finite")
    if not 1 <= k < count or not ((numbers >= 0) & (numbers < count)).all():
        raise ValueError(
            f"k {k}, numbers from {numbers.min()} to {numbers.max()}: must be from 1 to below the "
            f"{count} classes, and from 0"
        )
    own = np.take_along_axis(logits, numbers[:, None], axis=1)
    return (logits >= own).sum(1) <= k


def _plain(text: str) -> str:
    return " ".join(re.sub(r"[()_-]", " ", text.lower()).split())
