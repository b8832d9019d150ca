"""The stages of a curation, and which of them an earlier measurement leaves to be done.

A stage's identity is a digest of its version, its settings and the identities of what it depends
on. Cuts depend on nothing, clips on cuts, and all scores on clips.
"""

import base64
import dataclasses
import io
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from PIL import Image

from vdm_jax.data.curation import clip_scores, cuts, look, motion, text, tracks
from vdm_jax.data.curation.clips import Clip, View
from vdm_jax.data.curation.cuts import Transition
from vdm_jax.data.curation.settings import Settings, digest

CLIPS_VERSION = 1
_THUMBNAIL = 72  # pixels, the height of each of a clip's pictures in the report
Row = dict[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """A measurement of clips.

    Attributes:
      identity: changes when the results may.
      score: a row of a clip, which JSON can write.
    """

    name: str
    identity: str
    score: Callable[[View], Row]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """The stages that settings ask for."""

    cuts: str
    clips: str
    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """Raises DataError where a detector or a scorer is missing."""
        cuts_id = digest("cuts", cuts.VERSION, dataclasses.asdict(settings.cuts))
        clips_id = digest(cuts_id, CLIPS_VERSION, dataclasses.asdict(settings.clips))
        samples = dataclasses.asdict(settings.samples)
        detail = settings.duplicates.least_detail

        def stage(name: str, version: Any, score: Callable[[View], Row]) -> Stage:
            identity = digest(clips_id, samples, name, version)
            return Stage(name=name, identity=identity, score=score)

        found = [
            stage("motion", motion.VERSION, motion.score),
            stage("look", look.VERSION, look.score),
            stage("hashes", (tracks.VERSION, detail), _hashes),
            stage("thumbnail", _THUMBNAIL, thumbnail),
        ]
        if settings.text.detector != "none":
            version = (text.VERSION, dataclasses.asdict(settings.text))
            found.append(stage("text", version, text.TextDetector(settings.text)))
        if settings.look.clip:
            version = (clip_scores.VERSION, settings.look.clip)
            embedder = clip_scores.Embedder(settings.look.clip)
            found.append(stage(clip_scores.STAGE, version, embedder))
        for reference in settings.look.scorers:
            scorer = look.load_scorer(reference)
            found.append(stage(scorer.name, scorer.version, scorer))
        return cls(cuts=cuts_id, clips=clips_id, stages=tuple(found))

    @property
    def identity(self) -> str:
        """Of all stages together."""
        return digest(self.cuts, self.clips, [stage.identity for stage in self.stages])

    def missing(self, measured: "Measured | None") -> list[Stage]:
        """The stages whose rows a measurement lacks."""
        if measured is None or measured.clips_id != self.clips:
            return list(self.stages)
        return [
            stage
            for stage in self.stages
            if measured.rows.get(stage.name, ("", ()))[0] != stage.identity
        ]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured of a film.

    Attributes:
      cuts_id, clips_id: identities of these stages.
      transitions, clips: their results.
      rows: by name of a stage its identity, and a row for each clip.
      frames: that were decoded.
      note: what is wrong with the film, where a part of it can be used.
      spent: seconds of processor time by part.
    """

    cuts_id: str
    clips_id: str
    transitions: list[Transition]
    clips: list[Clip]
    rows: Mapping[str, tuple[str, list[Row]]]
    frames: int
    note: str = ""
    spent: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        return cls(
            **{
                **values,
                "transitions": [Transition(*one) for one in values["transitions"]],
                "clips": [Clip(*one) for one in values["clips"]],
                "rows": {name: (row[0], row[1]) for name, row in values["rows"].items()},
            }
        )


def thumbnail(view: View) -> Row:
    """The first, the middle and the last sample side by side, as a JPEG in base 64."""
    pictures = []
    for pick in view.picks:
        image = Image.fromarray(pick)
        width = max(1, round(image.width * _THUMBNAIL / image.height))
        pictures.append(np.asarray(image.resize((width, _THUMBNAIL), Image.Resampling.BOX)))
    file = io.BytesIO()
    Image.fromarray(np.concatenate(pictures, axis=1)).save(file, "JPEG", quality=80)
    return {"jpeg": base64.b64encode(file.getvalue()).decode()}


def _hashes(view: View) -> Row:
    return {"hashes": [f"{one:016x}" for one in view.hashes]}
