"""TransNetV2 as a detector of transitions, fades and dissolves among them.

The network sees 100 frames at a time, of which the middle 50 are taken, as in its authors' code.
"""

import functools
from collections.abc import Callable

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from vdm_jax.data.curation.cuts import Transition

PUBLISHED = "published"
# Pixels of a frame, as in `models.transnet`, whose import would load JAX into every process.
HEIGHT, WIDTH = 27, 48
_WINDOW, _MARGIN = 100, 25
_TAKEN = _WINDOW - 2 * _MARGIN
# The probability of a transition for each frame of a window.
Predict = Callable[[UInt8[np.ndarray, "100 27 48 3"]], Float32[np.ndarray, "100"]]


class TransNetCuts:
    """See `cuts.Finder`. threshold: least probability of a frame in a transition."""

    def __init__(self, predict: Predict, threshold: float):
        self._predict, self._threshold = predict, threshold
        self._waiting: list[np.ndarray] = []  # from `_MARGIN` frames before the next that is taken
        self._number = 0
        self._taken = 0
        self._open: int | None = None  # the first frame of the transition that goes on
        self.settled = 0

    def add(self, picture: UInt8[np.ndarray, "h w 3"]) -> list[Transition]:
        small = cv2.resize(picture, (WIDTH, HEIGHT), interpolation=cv2.INTER_AREA)
        if not self._waiting:
            self._waiting = [small] * _MARGIN
        self._waiting.append(small)
        self._number += 1
        found = self._take(_TAKEN) if len(self._waiting) == _WINDOW else []
        self.settled = self._taken if self._open is None else self._open
        return found

    def finish(self) -> list[Transition]:
        found: list[Transition] = []
        while self._taken < self._number:
            missing = _WINDOW - len(self._waiting)
            self._waiting += [self._waiting[-1]] * missing
            found += self._take(min(_TAKEN, self._number - self._taken))
        return found + self._close(self._number)

    def _take(self, count: int) -> list[Transition]:
        """Reads the next `count` frames of a full window."""
        chances = self._predict(np.stack(self._waiting))[_MARGIN : _MARGIN + count]
        self._waiting = self._waiting[_TAKEN:]
        found: list[Transition] = []
        for number, chance in enumerate(chances, start=self._taken):
            if chance > self._threshold and self._open is None:
                self._open = number
            elif chance <= self._threshold:
                found += self._close(number)
        self._taken += count
        return found

    def _close(self, number: int) -> list[Transition]:
        """The open transition, whose first frame still is of the old shot; `number` is the first of
        the new one."""
        if self._open is None:
            return []
        first, self._open = self._open + 1, None
        return [Transition(first, number)]


@functools.cache
def load(source: str) -> Predict:
    """The published network, compiled in this process at its first call.

    source: "published", or a file (`weights.transnet.load`, whose errors this raises).
    """
    import jax

    from vdm_jax.weights import transnet

    network, params = transnet.load(None if source == PUBLISHED else source)

    @jax.jit
    def chances(frames):
        return jax.nn.sigmoid(network.apply({"params": params}, frames[None])[0, :, 0])

    return lambda frames: np.asarray(chances(frames))
