"""How the pictures of a clip look: simple measures that are named for what they measure, and an
interface for learned ones.

No weights of a learned one can be assumed; `clip_scores` reads them where a user has them.
"""

import importlib
from typing import Protocol

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from vdm_jax.data.curation.clips import View
from vdm_jax.data.curation.film import grey
from vdm_jax.data.source import DataError

VERSION = 1
_DARK = 20.0  # luma; a row, a column or a picture with less everywhere is black
_BRIGHT = 250.0  # luma from which a pixel is clipped
_CLIPPED_DARK = 5.0
_SHARP_SIDE = 256  # pixels of the shorter side at which sharpness is measured


class Scorer(Protocol):
    """Measures clips, for example by a learned model.

    Attributes:
      name: of the stage; one word.
      version: changes when the results do; clips are then measured again.
    """

    name: str
    version: str

    def __call__(self, view: View) -> dict[str, float]:
        """Scores of a clip by name. Every clip has the same names."""


def load_scorer(reference: str) -> Scorer:
    """The scorer that "MODULE:NAME" names. Raises DataError."""
    module, colon, name = reference.partition(":")
    try:
        if not colon:
            raise ImportError("it is not MODULE:NAME")
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise DataError(f"look.scorers: {reference!r} cannot be loaded: {error}") from error
    scorer = found if hasattr(found, "version") and not isinstance(found, type) else found()
    for attribute in ("name", "version"):
        if not isinstance(getattr(scorer, attribute, None), str):
            raise DataError(f"look.scorers: {reference!r} has no text `{attribute}`")
    return scorer


def score(view: View) -> dict[str, float]:
    """Scores of a clip's pictures, by name.

    - sharpness: variance of the Laplacian of the grey picture, whose shorter side has at most 256
      pixels.
    - colourfulness: Hasler and Süsstrunk 2003, equation 1.
    - brightness: mean luma, 0 to 1.
    - clipped: share of pixels that are almost black or almost white.
    - black: share of the samples that are black.
    - border: share of the picture in black rows and columns at its sides, in all samples.

    The first four are means over the first, the middle and the last sample.
    """
    picks = view.picks
    greys = [grey(picture) for picture in picks]
    brightest = np.max([grey(sample) for sample in view.samples], axis=0)
    dark = [float(grey(sample).max() < 2 * _DARK) for sample in view.samples]
    clipped = [(one < _CLIPPED_DARK) | (one > _BRIGHT) for one in greys]
    return {
        "sharpness": float(np.mean([_sharpness(one) for one in greys])),
        "colourfulness": float(np.mean([colourfulness(one) for one in picks])),
        "brightness": float(np.mean([one.mean() for one in greys])) / 255,
        "clipped": float(np.mean(clipped)),
        "black": float(np.mean(dark)),
        "border": border(brightest),
    }


def border(brightest: Float32[np.ndarray, "h w"]) -> float:
    """The share of a picture that lies in black rows and columns at its sides.

    brightest: the greatest luma of each pixel, of all pictures. 1 where everything is black.
    """
    bright = brightest > _DARK
    # A few bright pixels in a bar are noise of the coding, or a logo.
    rows = np.flatnonzero(bright.mean(axis=1) > 0.02)
    columns = np.flatnonzero(bright.mean(axis=0) > 0.02)
    if not len(rows) or not len(columns):
        return 1.0
    kept = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
    return 1 - float(kept) / brightest.size


def colourfulness(picture: UInt8[np.ndarray, "h w 3"]) -> float:
    """Hasler and Süsstrunk 2003, equation 1: 0 for grey, about 100 for strong colours."""
    red, green, blue = picture.astype(np.float32).transpose(2, 0, 1)
    first, second = red - green, (red + green) / 2 - blue
    deviation = np.hypot(first.std(), second.std())
    return float(deviation + 0.3 * np.hypot(first.mean(), second.mean()))


def _sharpness(picture: Float32[np.ndarray, "h w"]) -> float:
    scale = _SHARP_SIDE / min(picture.shape)
    if scale < 1:
        size = round(picture.shape[1] * scale), round(picture.shape[0] * scale)
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    return float(cv2.Laplacian(picture, cv2.CV_32F).var())
