"""The whole of a curation, from a folder of films to the shards."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from vdm_jax.data.curation import captioning, engine, filters, matching, output, report, table
from vdm_jax.data.curation.engine import Run, Work
from vdm_jax.data.curation.records import Contents
from vdm_jax.data.curation.settings import Settings


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """What a curation gives.

    Attributes:
      table, report, shards_folder: where they are.
      films, failed, named: films; those that cannot be used; those that are captioned by a name.
      clips, kept, hours, hours_kept: clips, and hours of them.
      reasons: how many clips each range removes.
      shards: that training reads.
    """

    table: Path
    report: Path
    shards_folder: Path
    films: int
    failed: int
    named: int
    clips: int
    kept: int
    hours: float
    hours_kept: float
    reasons: dict[str, int]
    shards: int


def run(
    work: Work,
    pool: Run,
    *,
    shards: bool = True,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> Results:
    """Measures the films of a folder that are not measured yet, filters, and writes the results.

    Args:
      pool: `engine.in_pool(workers)` or `beam.in_pipeline(workers)`.
      shards: whether the kept clips are written.
      progress: is called with a stage, the number of its pieces of work that are done, and of all.

    Raises DataError, and OSError where the results cannot be written.
    """
    out = Path(work.out)
    with engine.locked(out):
        left_out = engine.measure_all(work, pool, progress)
        rows, contents = _rows(work, left_out)
        rows = captioning.caption(work, rows, pool, progress)
        rows = matching.match(work, rows, contents)
        table_path = table.write(out, rows, work)
        report_path = report.write(out, rows, contents, work.settings)
        count = output.write_shards(work, rows, pool, progress) if shards else 0
    summary = table.summary(rows)
    return Results(
        table=table_path,
        report=report_path,
        shards_folder=out / output.NAME,
        films=int(summary["films"]),
        failed=len({row.film for row in rows if not row.name and not row.copy_of}),
        named=len({row.film for row in rows if row.caption_source == "name"}),
        clips=int(summary["clips"]),
        kept=int(summary["clips kept"]),
        hours=summary["hours"],
        hours_kept=summary["hours kept"],
        reasons=table.reasons(rows),
        shards=count,
    )


def write_report(out: str, ranges: Mapping[str, str]) -> tuple[Path, int, int]:
    """Writes the report of an earlier `run` anew, with other ranges for some scores.

    ranges: by score, as in `Settings.keep`. Returns the page's path, the number of clips that would
    be kept, and of all. Raises DataError.
    """
    work, rows, contents = _filtered(out, ranges)
    path = report.write(Path(out), rows, contents, work.settings)
    summary = table.summary(rows)
    return path, int(summary["clips kept"]), int(summary["clips"])


def read(out: str, ranges: Mapping[str, str]) -> tuple[Work, list[filters.ClipRow]]:
    """The work and the rows of an earlier `run`, with other ranges for some scores.

    ranges: as in `write_report`. Nothing is measured or written. Raises DataError.
    """
    return _filtered(out, ranges)[:2]


def _filtered(out: str, ranges: Mapping[str, str]) -> tuple[Work, list[filters.ClipRow], Contents]:
    about = table.about(Path(out))
    settings = Settings.from_dict(about["settings"])
    settings = dataclasses.replace(settings, keep={**settings.keep, **ranges})
    work = Work(videos=about["videos"], out=out, settings=settings)
    rows, contents = _rows(work, {})
    rows = matching.match(work, captioning.with_stored(work, rows), contents)
    return work, rows, contents


def _rows(work: Work, left_out: dict[str, str]) -> tuple[list[filters.ClipRow], Contents]:
    """The rows of all films, and the films by digest."""
    records = work.records
    names = list(records.names())
    contents = Contents(records, (name.digest for name in names if name.digest))
    rows = filters.clip_rows(work.videos, names, contents, work.settings, left_out)
    return rows, contents
