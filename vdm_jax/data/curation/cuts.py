"""Where one shot ends and the next begins, found while a film is read.

Hard cuts: PySceneDetect's AdaptiveDetector, which compares a frame's change with that of its
neighbours. Fades and dissolves: a test of mixtures. While one picture A turns into another one B,
each picture M between them is the mixture B + α (A − B), with α falling. The least-squares α and
what it leaves unexplained tell such a mixture from motion. It is tested over two windows, so
slow and fast transitions are both seen, as a cascade of frame rates does (Stable Video Diffusion,
section 3.1). A slow zoom is almost a mixture too; but its ends look alike, and those of a
transition do not.

TransNetV2 (`transnet`) may be added to both.
"""

from collections import deque
from typing import NamedTuple, Protocol

import cv2
import numpy as np
from jaxtyping import Float32, UInt8
from scenedetect import FrameTimecode
from scenedetect.detectors import AdaptiveDetector

from vdm_jax.data.curation.settings import Cuts

VERSION = 1  # of the results; a change repeats this stage
_SHORTEST = 0.25  # seconds between two hard cuts
_WINDOWS = (0.25, 0.5)  # seconds from the middle of a tested window to its ends
_LONGEST = 4.0  # seconds of a transition; a longer one is reported as several
_SIDE = 32  # pixels of the pictures that are tested for mixtures
_UNEXPLAINED = 0.25  # most of the change that a mixture may leave unexplained
_LEAST_CHANGE = 8.0  # of a window's ends, of 255; less is noise
_LEAST_SPACING = 0.05  # of α from one picture to the next
_MIDDLE = (0.2, 0.8)  # α in the middle of a window
_GAP = 4  # frames without a mixture that end a transition
_LEAST_HITS = 2
# A transition's ends: the most that they may correlate and the least that they must differ, of
# 255; or the one has less than this share of the other's contrast, as black has.
_ALIKE, _DIFFERENT, _FADED = 0.6, 25.0, 0.3


class Transition(NamedTuple):
    """Frames [first, last) belong to no shot. A hard cut has first = last: the first frame of the
    new shot."""

    first: int
    last: int


class Finder(Protocol):
    """Finds transitions in pictures that come one by one.

    Attributes:
      settled: transitions that are still to be reported begin at this frame or later.
    """

    settled: int

    def add(self, picture: UInt8[np.ndarray, "h w 3"]) -> list[Transition]:
        """Takes the next picture and returns the transitions that this completes."""

    def finish(self) -> list[Transition]:
        """Returns what is open after the last picture."""


class CutFinder:
    """All detectors that the settings ask for; reports transitions in order, merged.

    fps: frames a second, the mean over the film. more: further detectors.
    """

    def __init__(self, settings: Cuts, fps: float, more: tuple[Finder, ...] = ()):
        self._finders: list[Finder] = [HardCuts(settings, fps)]
        if settings.gradual:
            self._finders.append(GradualCuts(fps))
        self._finders += more
        self._found: list[Transition] = []
        self.settled = 0

    def add(self, picture: UInt8[np.ndarray, "h w 3"]) -> list[Transition]:
        for finder in self._finders:
            self._found += finder.add(picture)
        self.settled = min(finder.settled for finder in self._finders)
        return self._take()

    def finish(self) -> list[Transition]:
        for finder in self._finders:
            self._found += finder.finish()
        self.settled = np.iinfo(np.int64).max
        return self._take()

    def _take(self) -> list[Transition]:
        if not self._found:
            return []
        self._found = merge(self._found)
        # One that ends at `settled` may still be merged with the next.
        ready = [one for one in self._found if one.last < self.settled]
        self._found = self._found[len(ready) :]
        return ready


class KnownCuts:
    """Transitions that are known from an earlier pass, reported when they are reached."""

    def __init__(self, transitions: list[Transition]):
        self._waiting = deque(transitions)
        self._number = 0
        self.settled = 0

    def add(self, picture: UInt8[np.ndarray, "h w 3"]) -> list[Transition]:
        self._number += 1
        ready = []
        while self._waiting and self._waiting[0].last < self._number:
            ready.append(self._waiting.popleft())
        first = self._waiting[0].first if self._waiting else self._number
        self.settled = min(first, self._number)
        return ready

    def finish(self) -> list[Transition]:
        return list(self._waiting)


class HardCuts:
    """Cuts from one frame to the next; see `Finder`."""

    def __init__(self, settings: Cuts, fps: float):
        self._fps = float(fps)  # a whole number would be taken for frames
        self._number = 0
        self._detector = AdaptiveDetector(
            adaptive_threshold=settings.adaptive,
            min_scene_len=max(1, round(_SHORTEST * fps)),
            min_content_val=settings.least_change,
        )
        self.settled = 0

    def add(self, picture: UInt8[np.ndarray, "h w 3"]) -> list[Transition]:
        found = self._detector.process_frame(
            FrameTimecode(self._number, self._fps), np.ascontiguousarray(picture[..., ::-1])
        )
        self._number += 1
        self.settled = max(0, self._number - 2 * self._detector.window_width - 1)
        return [Transition(time.frame_num, time.frame_num) for time in found]

    def finish(self) -> list[Transition]:
        return []


class GradualCuts:
    """Fades and dissolves; see `Finder`."""

    def __init__(self, fps: float):
        self._windows = sorted({max(2, round(seconds * fps)) for seconds in _WINDOWS})
        self._longest = round(_LONGEST * fps)
        self._kept: deque[np.ndarray] = deque(maxlen=self._longest + 4 * self._windows[-1] + _GAP)
        self._number = 0
        self._open: list[tuple[int, int, int]] = []  # (middle, first, last) of each mixture
        self.settled = 0

    def add(self, picture: UInt8[np.ndarray, "h w 3"]) -> list[Transition]:
        small = cv2.resize(picture, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
        self._kept.append(small.astype(np.float32).ravel())
        self._number += 1
        for window in self._windows:
            middle = self._number - 1 - window
            if middle >= window and self._is_mixture(middle, window):
                self._open.append((middle, middle - window, middle + window))
        found = []
        if self._open:
            middles = [middle for middle, _, _ in self._open]
            quiet = self._number - 1 - self._windows[-1] > max(middles) + _GAP
            if quiet or max(middles) - min(middles) > self._longest:
                found = self._closed()
        first = min((first for _, first, _ in self._open), default=self._number)
        self.settled = max(0, min(first, self._number - 2 * self._windows[-1] - 1))
        return found

    def finish(self) -> list[Transition]:
        return self._closed()

    def _picture(self, number: int) -> Float32[np.ndarray, "n"]:
        return self._kept[number - self._number + len(self._kept)]

    def _is_mixture(self, middle: int, window: int) -> bool:
        before, after = self._picture(middle - window), self._picture(middle + window)
        difference = before - after
        change = float(np.abs(difference).mean())
        if change < _LEAST_CHANGE:
            return False
        power = float(difference @ difference)
        shares = []
        for number in (middle - window // 2, middle, middle + window // 2):
            rest = self._picture(number) - after
            share = float(difference @ rest) / power
            if float(np.abs(rest - share * difference).mean()) > _UNEXPLAINED * change:
                return False
            shares.append(share)
        falling = min(shares[0] - shares[1], shares[1] - shares[2]) > _LEAST_SPACING
        return falling and _MIDDLE[0] < shares[1] < _MIDDLE[1]

    def _closed(self) -> list[Transition]:
        """The open mixtures as a transition, where they are one."""
        opened, self._open = self._open, []
        if len({middle for middle, _, _ in opened}) < _LEAST_HITS:
            return []
        first = min(first for _, first, _ in opened)
        last = min(max(last for _, _, last in opened), self._number - 1)
        if _look_alike(self._picture(first), self._picture(last)):
            return []
        return [Transition(first, last + 1)]


def merge(transitions: list[Transition]) -> list[Transition]:
    """Transitions in order, those that overlap or touch as one."""
    merged: list[Transition] = []
    for one in sorted(transitions):
        if merged and one.first <= merged[-1].last:
            merged[-1] = Transition(merged[-1].first, max(one.last, merged[-1].last))
        else:
            merged.append(one)
    return merged


def _look_alike(before: Float32[np.ndarray, "n"], after: Float32[np.ndarray, "n"]) -> bool:
    """Whether two pictures may be of one shot."""
    centred = []
    for picture in (before, after):
        pixels = picture.reshape(-1, 3)
        centred.append((pixels - pixels.mean(0)).ravel())
    contrasts = [float(np.linalg.norm(one)) + 1e-3 for one in centred]
    if min(contrasts) < _FADED * max(contrasts):
        return False
    correlation = float(centred[0] @ centred[1]) / (contrasts[0] * contrasts[1])
    return correlation > _ALIKE or float(np.abs(before - after).mean()) < _DIFFERENT
