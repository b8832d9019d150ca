"""The kept clips as shards that training reads (`data.name = "video_shards"`).

A shard takes the kept clips of some films that follow each other, up to a length of film. Which
films these are does not depend on what is kept, so a changed range writes only the shards anew
whose clips change. A shard is written whole by one process.
"""

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import av
from etils import epath

from vdm_jax.data import text_files, video_container, video_indexing, video_shards
from vdm_jax.data.curation import cutting
from vdm_jax.data.curation.clips import Clip
from vdm_jax.data.curation.engine import Run, Work
from vdm_jax.data.curation.filters import ClipRow
from vdm_jax.data.source import DataError
from vdm_jax.data.video_container import Unusable
from vdm_jax.data.video_index import VideoFile

NAME = "train"


def write_shards(
    work: Work,
    rows: Sequence[ClipRow],
    run: Run,
    progress: Callable[[str, int, int], None] = lambda *_: None,
    *,
    folder: Path | None = None,
) -> int:
    """Writes shards of the kept clips, and deletes shards of an earlier run that are of others.

    folder: that receives them, by default `OUT/train`. Shards that are complete are kept. Returns
    how many there are.
    """
    folder = Path(work.out, NAME) if folder is None else folder
    folder.mkdir(parents=True, exist_ok=True)
    planned = {
        f"shard-{number:05d}": _described(shard)
        for number, shard in enumerate(_divided(rows, work.settings.output.shard_minutes))
        if shard
    }
    for path in sorted(folder.glob("shard-*.json")):
        if _present(path) != _files(planned.get(path.stem), work):
            path.unlink()
    for path in sorted(folder.glob("shard-*.array_record")):
        if not path.with_suffix(".json").exists():  # of other clips, or not finished
            path.unlink()
    due = [
        json.dumps([str(folder), name, shard])
        for name, shard in planned.items()
        if not (folder / f"{name}.json").exists()
    ]
    for done, _ in enumerate(run(_write, _died, work, due), start=1):
        progress("written", done, len(due))
    return len(planned)


def _divided(rows: Sequence[ClipRow], minutes: float) -> Iterator[list[ClipRow]]:
    """The kept clips of each shard, none where its films give none: numbers of shards stay."""
    films: dict[str, list[ClipRow]] = {}
    for row in rows:
        if row.name:
            films.setdefault(row.film, []).append(row)
    shard: list[ClipRow] = []
    seconds = 0.0
    for name in sorted(films):
        length = max(row.start + row.seconds for row in films[name])
        if seconds and seconds + length > 60 * minutes:
            yield shard
            shard, seconds = [], 0.0
        shard += [row for row in films[name] if row.kept]
        seconds += length
    yield shard


def _described(shard: Sequence[ClipRow]) -> list[list]:
    return [
        [row.film, row.digest, row.name, [row.start_frame, row.end_frame], list(row.captions)]
        for row in shard
    ]


def _files(shard: list[list] | None, work: Work) -> list | None:
    """What identifies a shard: its clips and how they are coded."""
    if shard is None:
        return None
    output = work.settings.output
    coding = {"side": output.side, "quality": output.quality, "copy": output.copy}
    return [coding, *([name, frames, texts] for _, _, name, frames, texts in shard)]


def _present(path: Path) -> list | None:
    try:
        return json.loads(path.read_text())["files"]
    except (OSError, ValueError, KeyError):
        return None


def _write(work: Work, key: str) -> None:
    folder, name, shard = json.loads(key)
    index = epath.Path(folder, f"{name}.json")
    with tempfile.TemporaryDirectory() as scratch:
        video_shards.pack(index, _files(shard, work), _cut(work, shard, Path(scratch)))


def _died(work: Work, key: str) -> None:
    films = dict.fromkeys(clip[0] for clip in json.loads(key)[2])
    names = ", ".join(map(text_files.shown, films))
    raise DataError(f"the process that wrote the clips of {names} was ended")


def _cut(work: Work, shard: list[list], scratch: Path) -> Iterator[tuple]:
    """Writes the clips of one film after the other, and yields what `video_shards.pack` takes."""
    records, settings = work.records, work.settings
    for film in dict.fromkeys(one[0] for one in shard):
        clips = [one for one in shard if one[0] == film]
        known = records.content(clips[0][1]).film
        targets = [scratch / f"{name}.mp4" for _, _, name, _, _ in clips]
        reason = ""
        try:
            cutting.write(
                Path(work.videos, film),
                known.file.index,
                [Clip(*frames) for _, _, _, frames, _ in clips],
                targets,
                settings.output,
                codec=known.codec,
                slack=settings.clips.trim,
            )
        except (av.error.FFmpegError, DataError) as error:  # changed since it was measured
            reason = video_container.reason_of(error)
        for (_, _, _, _, texts), target in zip(clips, targets, strict=True):
            if reason:
                yield target.name, target, Unusable(reason), texts
            else:
                file = VideoFile.of(str(target), video_indexing.build(target))
                yield target.name, target, file, texts
            target.unlink(missing_ok=True)
