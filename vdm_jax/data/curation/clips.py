"""Shots cut into clips, and what is looked at of each clip."""

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, UInt8

from vdm_jax.data.curation.cuts import Transition
from vdm_jax.data.curation.settings import Clips


class Clip(NamedTuple):
    """Frames [start, end) of a film."""

    start: int
    end: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """What scorers see of a clip.

    Attributes:
      seconds: of the clip.
      fps: the film's frames a second.
      samples: pictures of the clip, evenly spaced in time, at least one.
      tracks: by name, a value for each frame of the clip (`tracks.TRACKS`).
      hashes: perceptual hashes of pictures of the clip, evenly spaced in time.
    """

    seconds: float
    fps: float
    samples: list[UInt8[np.ndarray, "h w 3"]]
    tracks: Mapping[str, np.ndarray]
    hashes: list[int]

    @property
    def picks(self) -> list[UInt8[np.ndarray, "h w 3"]]:
        """The first, the middle and the last sample; fewer where the clip has fewer."""
        count = len(self.samples)
        return [self.samples[place] for place in sorted({0, count // 2, count - 1})]


class Divider:
    """Divides shots into clips as their ends become known.

    seconds: when each frame of the film is shown. Both ends of a shot are trimmed. A shot that is
    too long is divided into clips of the greatest length; what is too short is left out.
    """

    def __init__(self, settings: Clips, seconds: Float64[np.ndarray, "n"], fps: float):
        self._settings, self._seconds = settings, seconds
        self._frame = 1 / fps
        self._start = 0  # of the shot, or of what is left of it
        self._trim_start = 0.0  # the film begins and ends without a cut

    @property
    def first_needed(self) -> int:
        """Frames before this one belong to no further clip."""
        return self._start

    def cut(self, transition: Transition) -> list[Clip]:
        """The clips of the shot that ends at a transition."""
        if transition.first <= self._start:  # a fade-in at the beginning of the film
            clips = []
        else:
            clips = self._clips(transition.first, self._settings.trim)
        self._start, self._trim_start = max(transition.last, self._start), self._settings.trim
        return clips

    def advance(self, settled: int) -> list[Clip]:
        """The clips that are complete although their shot goes on, to frame `settled` at least."""
        clips = []
        while True:
            first = self._at(self._time(self._start) + self._trim_start)
            end = self._before(self._time(first) + self._settings.most)
            spare = self._settings.trim + self._settings.least
            if end >= len(self._seconds) or self._time(end) + spare > self._time(settled):
                return clips
            clips.append(Clip(first, end))
            self._start, self._trim_start = end, 0.0

    def finish(self, frames: int) -> list[Clip]:
        """The clips of the last shot, of a film of so many frames."""
        return self._clips(frames, 0.0)

    def _clips(self, end: int, trim: float) -> list[Clip]:
        clips = self.advance(end)
        first = self._at(self._time(self._start) + self._trim_start)
        last = self._before(min(self._time(end) - trim, self._time(first) + self._settings.most))
        if self._time(last) - self._time(first) >= self._settings.least - self._frame / 2:
            clips.append(Clip(first, last))
        return clips

    def _time(self, frame: int) -> float:
        if frame < len(self._seconds):
            return float(self._seconds[frame])
        return float(self._seconds[-1]) + self._frame * (frame - len(self._seconds) + 1)

    def _at(self, seconds: float) -> int:
        """The first frame that is shown at this time or later."""
        found = int(np.searchsorted(self._seconds, seconds - self._frame / 1000))
        if found < len(self._seconds):
            return found
        return found - 1 + max(1, round((seconds - float(self._seconds[-1])) / self._frame))

    def _before(self, seconds: float) -> int:
        """The last frame that is shown at this time or earlier; at most the one behind the end."""
        if seconds + self._frame / 1000 >= self._time(len(self._seconds)):
            return len(self._seconds)
        found = int(np.searchsorted(self._seconds, seconds + self._frame / 1000, "right"))
        return max(0, found - 1)
