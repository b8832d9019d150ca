"""What is kept of every frame of a film: how it moves from the frame before, and its hash.

A hash has one bit for each of the 63 lowest cosine frequencies of the grey picture: the sign of its
amplitude (Zauner 2010, with the sign in the place of the median). Mirroring a picture changes the
sign of the odd horizontal frequencies and nothing else, so the mirrored picture's hash is known.
"""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from vdm_jax.data.curation.film import grey

VERSION = 1
TRACKS = ("change", "down", "right", "sure", "coded")
_SIDE = 64
_HASHED = 32  # pixels of the picture that is hashed
_BITS = 8  # frequencies a direction
# Bits that mirroring changes: odd horizontal frequencies. Bit 0 stands for the mean and is 0.
MIRROR = sum(1 << (8 * row + column) for row in range(_BITS) for column in range(1, _BITS, 2))


class Tracker:
    """Compares each frame with the one before.

    `values` holds, by name of `TRACKS`, one number for each frame so far:

    - change: mean difference of the grey values, of 255.
    - down, right: displacement of the picture, in frame heights, by phase correlation.
    - sure: the share of the correlation that is in its peak; low where objects move or scenes cut.
    - coded: mean length of the codec's motion vectors, in frame heights.
    """

    def __init__(self):
        self.values: dict[str, list[float]] = {name: [] for name in TRACKS}
        self._before: Float32[np.ndarray, "h w"] | None = None
        self._window: Float32[np.ndarray, "h w"] | None = None

    def add(self, picture: UInt8[np.ndarray, "h w 3"], coded: float) -> None:
        now = grey(picture)
        if self._before is None:
            self._before = now
            self._window = cv2.createHanningWindow(now.shape[::-1], cv2.CV_32F)
        (right, down), sure = cv2.phaseCorrelate(self._before, now, self._window)
        change = float(np.abs(now - self._before).mean())
        height = now.shape[0]
        row = (change, down / height, right / height, sure, coded)
        for name, value in zip(TRACKS, row, strict=True):
            self.values[name].append(value)
        self._before = now


def picture_hash(picture: UInt8[np.ndarray, "h w 3"], least_detail: float) -> int | None:
    """63 bits that similar pictures share; None where the picture has too little contrast."""
    small = cv2.resize(grey(picture), (_HASHED, _HASHED), interpolation=cv2.INTER_AREA)
    if small.std() < least_detail:
        return None
    bits = cv2.dct(small)[:_BITS, :_BITS].ravel() > 0
    bits[0] = False
    return int((bits.astype(np.uint64) << np.arange(_BITS * _BITS, dtype=np.uint64)).sum())
