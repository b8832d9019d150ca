"""Which clips are kept: a pure function of the records and the settings.

Nothing is measured here, so a changed range takes seconds.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vdm_jax.data.curation import captions, clip_scores, duplicates, film
from vdm_jax.data.curation.records import Content, Name
from vdm_jax.data.curation.settings import Range, Settings
from vdm_jax.data.curation.stages import Plan
from vdm_jax.data.source import DataError
from vdm_jax.data.video_container import Unusable

_NO_SCORES = ("hashes", "thumbnail", clip_scores.STAGE)  # stages whose rows are no numbers
_LATER = ("similarity",)  # scores of a pass behind the filters (`matching`)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipRow:
    """A clip, or a film without clips, as the table has it.

    Attributes:
      film: name of the file below the folder of films.
      digest: of its content; "" where it could not be read.
      name: of the clip; "" of a film that gives none.
      start_frame, end_frame: the first frame, and the one behind the last.
      start, seconds: in the film.
      fps, codec: of the film; size: its height and width in pixels, upright.
      scores: by name.
      copy_of: name of the clip, or of the film, that this one is a copy of.
      captions, caption_source: see `captions.Captions`.
      reason: why it is not kept; "" where it is.
      note: what is wrong with the film, where a part of it can be used.
    """

    film: str
    digest: str = ""
    name: str = ""
    start_frame: int = 0
    end_frame: int = 0
    start: float = 0.0
    seconds: float = 0.0
    fps: float = 0.0
    size: tuple[int, int] = (0, 0)
    codec: str = ""
    scores: dict[str, float] = dataclasses.field(default_factory=dict)
    copy_of: str = ""
    captions: tuple[str, ...] = ()
    caption_source: str = ""
    reason: str = ""
    note: str = ""

    @property
    def kept(self) -> bool:
        return not self.reason


def clip_rows(
    videos: str,
    names: Sequence[Name],
    contents: Mapping[str, Content],
    settings: Settings,
    left_out: dict[str, str],
) -> list[ClipRow]:
    """A row for each clip, for each film without clips, and for each name that is left out.

    names: in order; contents: by digest. Raises DataError for a range of a score that no stage
    measures.
    """
    plan = Plan.of(settings)
    rows = [ClipRow(film=name, reason=reason) for name, reason in left_out.items()]
    hashes: dict[str, list[int]] = {}
    seen: dict[str, str] = {}
    for name in names:
        first = seen.setdefault(name.digest, name.name) if name.digest else name.name
        content = contents.get(name.digest)
        if name.failure:
            rows.append(ClipRow(film=name.name, reason=name.failure))
        elif first != name.name:
            rows.append(
                ClipRow(
                    film=name.name, digest=name.digest, copy_of=first, reason=f"copy of {first}"
                )
            )
        elif content is None or plan.missing(content.measured):
            reason = content.failure if content is not None else ""
            rows.append(
                ClipRow(film=name.name, digest=name.digest, reason=reason or "is not measured")
            )
        else:
            clips = _film_rows(Path(videos, name.name), name, content, settings)
            for row, found in zip(clips, content.measured.rows["hashes"][1], strict=False):
                hashes[row.name] = [int(one, 16) for one in found["hashes"]]
            rows += clips
    return without_copies(_in_ranges(rows, settings), hashes, settings)


def _film_rows(path: Path, name: Name, content: Content, settings: Settings) -> list[ClipRow]:
    """The clips of a film, not yet filtered; or one row that says that it gives none."""
    known, measured = content.film, content.measured
    try:
        found = captions.film_captions(path)
    except Unusable as reason:
        return [ClipRow(film=name.name, digest=name.digest, reason=str(reason))]
    common = {
        "film": name.name,
        "digest": name.digest,
        "fps": known.file.fps,
        "size": (known.height, known.width),
        "codec": known.codec,
        "captions": found.texts,
        "caption_source": found.source,
        "note": measured.note,
    }
    if not measured.clips:
        return [ClipRow(**common, reason="has no shot that is long enough")]
    seconds = film.frame_seconds(known.file.index)
    rows = []
    for place, clip in enumerate(measured.clips):
        scores: dict[str, Any] = {}
        for stage, (_, values) in measured.rows.items():
            if stage not in _NO_SCORES:
                scores |= values[place]
        if settings.look.clip:
            pictures = clip_scores.stored(measured.rows[clip_scores.STAGE][1][place])
            scores |= clip_scores.head_scores(pictures, settings.look)
        start = float(seconds[clip.start])
        rows.append(
            ClipRow(
                **common,
                name=f"{name.digest[:16]}-{clip.start:07d}-{clip.end:07d}",
                start_frame=clip.start,
                end_frame=clip.end,
                start=start,
                seconds=float(seconds[clip.end - 1]) - start + 1 / known.file.fps,
                scores=scores,
            )
        )
    return rows


def _in_ranges(rows: list[ClipRow], settings: Settings) -> list[ClipRow]:
    """The rows, with the reason where a score is outside its range."""
    ranges = {
        name: Range.parse(name, text)
        for name, text in settings.keep.items()
        if name != "duplicate" and text and not (name in _LATER and settings.look.clip)
    }
    known = {name for row in rows for name in row.scores}
    if settings.text.detector == "none":
        ranges.pop("text", None)
    if known and (unknown := sorted(set(ranges) - known)):
        raise DataError(
            f"keep.{unknown[0]}: no stage measures it; scores are {', '.join(sorted(known))}"
        )
    results = []
    for row in rows:
        reasons = [
            _outside(name, row.scores[name], settings.keep[name])
            for name, allowed in ranges.items()
            if row.name and row.scores[name] not in allowed
        ]
        results.append(dataclasses.replace(row, reason=row.reason or "; ".join(reasons)))
    return results


def without_copies(
    rows: Sequence[ClipRow], hashes: Mapping[str, Sequence[int]], settings: Settings
) -> list[ClipRow]:
    """The rows with what each clip is a copy of; copies are not kept.

    Of several copies the first one is kept that nothing else removes. hashes: by clip.
    """
    clips = sorted((row for row in rows if row.name), key=lambda row: not row.kept)
    copies = duplicates.find([hashes[row.name] for row in clips], settings.duplicates)
    firsts = {
        clips[later].name: clips[first].name
        for later, first in enumerate(copies)
        if first is not None
    }
    results = []
    for row in rows:
        if row.name in firsts:
            first = firsts[row.name]
            reasons = [row.reason] if row.reason else []
            if settings.keep.get("duplicate") == "first":
                reasons.append(f"copy of {first}")
            row = dataclasses.replace(row, copy_of=first, reason="; ".join(reasons))
        results.append(row)
    return results


def with_score(row: ClipRow, name: str, value: float, settings: Settings) -> ClipRow:
    """A kept row with one more score, and not kept where its range excludes the value."""
    text = settings.keep.get(name, "")
    reason = "" if value in Range.parse(name, text) else _outside(name, value, text)
    return dataclasses.replace(row, scores=row.scores | {name: value}, reason=reason)


def measured_row(row: ClipRow, contents: Mapping[str, Content], stage: str) -> dict[str, Any]:
    """What a stage measured of a clip. contents: by digest."""
    measured = contents[row.digest].measured
    place = [clip.start for clip in measured.clips].index(row.start_frame)
    return measured.rows[stage][1][place]


def _outside(name: str, value: float, text: str) -> str:
    return f"{name} {value:.4g} is outside {text}"
