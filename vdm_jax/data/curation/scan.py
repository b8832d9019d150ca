"""Measures a film in one pass: every frame is decoded once, whatever there is to measure.

Cuts are found while the film is read. The samples of a shot are held until its end is known, then
its clips are measured and the samples dropped, so memory does not grow with the film.
"""

import contextlib
import os
import time
from collections.abc import Iterator

import av
import numpy as np

from vdm_jax.data import video_container
from vdm_jax.data.curation import cuts, film, tracks, transnet
from vdm_jax.data.curation.clips import Clip, Divider, View
from vdm_jax.data.curation.film import Film
from vdm_jax.data.curation.settings import Settings
from vdm_jax.data.curation.stages import Measured, Plan, Row, Stage
from vdm_jax.data.source import DataError
from vdm_jax.data.video_container import Unusable


class _OtherFrames(Exception):
    """The decoder gives other frames than the index says."""


def measure(
    path: str | os.PathLike, known: Film, settings: Settings, earlier: Measured | None = None
) -> tuple[Film, Measured]:
    """(the film, what is measured of it).

    earlier: of the same film; of it, what the settings leave unchanged is not measured again, and
    where that is everything the film is not opened. The film that is returned has another index
    where the one of `known` proves wrong.

    Raises Unusable where no frame can be decoded.
    """
    plan = Plan.of(settings)
    missing = plan.missing(earlier)
    if not missing:
        return known, earlier
    same_clips = earlier is not None and earlier.clips_id == plan.clips
    kept = earlier if earlier is not None and earlier.cuts_id == plan.cuts else None
    transitions = None if kept is None else kept.transitions
    try:
        scan = _Scan(known, settings, missing, transitions)
        scan.run(path)
    except _OtherFrames:
        known = film.reindexed(known, path)
        scan = _Scan(known, settings, missing, transitions)
        scan.run(path)
    rows = {stage.name: (stage.identity, scan.rows[stage.name]) for stage in missing}
    if same_clips:
        names = {stage.name for stage in plan.stages}
        rows = {**{name: row for name, row in earlier.rows.items() if name in names}, **rows}
    return known, Measured(
        cuts_id=plan.cuts,
        clips_id=plan.clips,
        transitions=scan.transitions,
        clips=scan.clips,
        rows=rows,
        frames=scan.frames,
        note=scan.note,
        spent=scan.spent,
    )


class _Scan:
    """One pass over a film; `run` fills what is public."""

    def __init__(
        self,
        known: Film,
        settings: Settings,
        stages: list[Stage],
        transitions: list[cuts.Transition] | None,
    ):
        self.transitions: list[cuts.Transition] = []
        self.clips: list[Clip] = []
        self.rows: dict[str, list[Row]] = {stage.name: [] for stage in stages}
        self.frames, self.note = 0, known.file.note
        self.spent: dict[str, float] = {}
        self._settings, self._stages = settings, stages
        self._index, self._fps = known.file.index, known.file.fps
        self._seconds = film.frame_seconds(self._index)
        if transitions is None:
            self._finder = cuts.CutFinder(settings.cuts, self._fps, self._more_finders())
        else:
            self._finder = cuts.KnownCuts(transitions)
        self._divider = Divider(settings.clips, self._seconds, self._fps)
        self._tracker = tracks.Tracker()
        self._samples: list[tuple[int, np.ndarray]] = []
        self._hashes: list[tuple[int, int]] = []

    def run(self, path: str | os.PathLike) -> None:
        """Raises Unusable, and _OtherFrames where the index is wrong."""
        due_sample = self._due(self._settings.samples.rate)
        due_hash = self._due(self._settings.samples.hash_rate)
        frames = film.frames(path, self._index)
        while (frame := self._next(frames)) is not None:
            number = self.frames
            if number >= len(self._seconds):
                raise _OtherFrames
            self.frames += 1
            with self._timed("decode"):
                small = frame.picture(self._settings.cuts.side)
            with self._timed("cuts"):
                found = self._finder.add(small)
            with self._timed("tracks"):
                self._tracker.add(small, frame.coded_motion())
                if due_hash[number]:
                    self._add_hash(number, small)
            if due_sample[number]:
                with self._timed("decode"):
                    self._samples.append((number, frame.picture(self._settings.samples.side)))
            self._close(found)
        if not self.frames:
            raise Unusable(f"unreadable: {self.note or 'no frame can be decoded'}")
        if self.frames < len(self._seconds) and not self.note:
            raise _OtherFrames
        self._close(self._finder.finish())
        self._measure(self._divider.finish(self.frames))

    def _next(self, frames: Iterator[film.Frame]) -> film.Frame | None:
        """The next frame; None at the end, and where the film is damaged."""
        with self._timed("decode"):
            try:
                return next(frames, None)
            except (av.error.FFmpegError, DataError) as error:
                reason = video_container.reason_of(error)
                self.note = f"damaged after {self.frames} frames ({reason})"
                return None

    def _close(self, transitions: list[cuts.Transition]) -> None:
        """Measures the clips that are complete, and drops what no further clip needs."""
        for transition in transitions:
            self.transitions.append(transition)
            self._measure(self._divider.cut(transition))
        self._measure(self._divider.advance(min(self._finder.settled, self.frames)))
        first = self._divider.first_needed
        while self._samples and self._samples[0][0] < first:
            self._samples.pop(0)

    def _measure(self, clips: list[Clip]) -> None:
        for clip in clips:
            self.clips.append(clip)
            view = View(
                seconds=float(self._seconds[clip.end - 1] - self._seconds[clip.start])
                + 1 / self._fps,
                fps=self._fps,
                samples=[one for at, one in self._samples if clip.start <= at < clip.end],
                tracks={
                    name: np.array(values[clip.start : clip.end])
                    for name, values in self._tracker.values.items()
                },
                hashes=[one for at, one in self._hashes if clip.start <= at < clip.end],
            )
            for stage in self._stages:
                with self._timed(stage.name):
                    self.rows[stage.name].append(stage.score(view))

    def _add_hash(self, number: int, picture: np.ndarray) -> None:
        found = tracks.picture_hash(picture, self._settings.duplicates.least_detail)
        if found is not None:
            self._hashes.append((number, found))

    def _due(self, rate: float) -> np.ndarray:
        """Whether each frame is the first at or after a multiple of 1 / rate seconds."""
        numbers = np.floor(self._seconds * rate + 1e-6)
        return np.diff(numbers, prepend=-1.0) > 0

    def _more_finders(self) -> tuple[cuts.Finder, ...]:
        settings = self._settings.cuts
        if not settings.transnet:
            return ()
        predict = transnet.load(settings.transnet)
        return (transnet.TransNetCuts(predict, settings.transnet_threshold),)

    @contextlib.contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.thread_time()  # of this thread, whatever else the machine does
        yield
        self.spent[name] = self.spent.get(name, 0.0) + time.thread_time() - start
