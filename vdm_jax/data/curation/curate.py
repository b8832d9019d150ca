"""The whole of a curation, from a folder of films to the shards."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from vdm_jax.data.curation import engine, filters, output, report, table
from vdm_jax.data.curation.engine import Run, Work
from vdm_jax.data.curation.records import Content


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
        names = list(work.records.names())
        contents: dict[str, Content] = {}
        for name in names:
            if name.digest and (found := work.records.content(name.digest)) is not None:
                contents[name.digest] = found
        rows = filters.clip_rows(work.videos, names, contents, work.settings, left_out)
        table_path = table.write(out, rows, work.settings)
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
