"""Captions of the kept clips by commands, such as a script that runs a captioning model.

Stable Video Diffusion (section 3.1) captions a clip's middle frame, the clip, and merges both texts
by a language model; training draws the three with probabilities .5, .25 and .25. A shard holds the
first caption twice, because training draws each of a clip's captions equally often.

Captions are kept in `OUT/captions/CLIP.json`, with the commands that printed them.
"""

import dataclasses
import json
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import av
from PIL import Image

from vdm_jax.data import text_files, video_container, video_io
from vdm_jax.data.curation import cutting, files
from vdm_jax.data.curation.clips import Clip
from vdm_jax.data.curation.engine import Run, Work
from vdm_jax.data.curation.filters import ClipRow
from vdm_jax.data.curation.settings import Captions, digest
from vdm_jax.data.source import DataError
from vdm_jax.data.video_container import Unusable

_FOLDER = "captions"
_SECONDS = 600  # that a command may take for one clip


def caption(
    work: Work,
    rows: Sequence[ClipRow],
    run: Run,
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> list[ClipRow]:
    """The rows, the kept ones with captions of the commands in `work.settings.captions`.

    Without commands, the rows as they are. A clip whose command fails is not kept. Raises DataError
    where a command cannot be started.
    """
    settings = work.settings.captions
    if settings == Captions():
        return list(rows)
    Path(work.out, _FOLDER).mkdir(exist_ok=True)
    films: dict[str, list[ClipRow]] = {}
    for row in rows:
        if row.kept and _stored(work, row.name) is None:
            films.setdefault(row.film, []).append(row)
    due = [
        json.dumps([film, found[0].digest, [[c.name, c.start_frame, c.end_frame] for c in found]])
        for film, found in films.items()
    ]
    for done, _ in enumerate(run(_caption_film, _died, work, due), start=1):
        progress("captioned", done, len(due))
    return with_stored(work, rows)


def with_stored(work: Work, rows: Sequence[ClipRow]) -> list[ClipRow]:
    """The rows, the kept ones with the captions that the commands printed in an earlier run."""
    return [_captioned(row, _stored(work, row.name)) if row.kept else row for row in rows]


def _captioned(row: ClipRow, content: dict | None) -> ClipRow:
    if content is None:
        return row
    if content["failure"]:
        return dataclasses.replace(row, reason=content["failure"])
    return dataclasses.replace(row, captions=tuple(content["texts"]), caption_source="command")


def _path(work: Work, name: str) -> Path:
    return Path(work.out, _FOLDER, f"{name}.json")


def _identity(work: Work) -> str:
    return digest(dataclasses.asdict(work.settings.captions))


def _stored(work: Work, name: str) -> dict | None:
    """What the same commands printed for a clip."""
    try:
        content = json.loads(_path(work, name).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if content.get("identity") == _identity(work) else None


def _died(work: Work, key: str) -> None:
    name = text_files.shown(json.loads(key)[0])
    raise DataError(f"the process that captioned the clips of {name} was ended")


def _caption_film(work: Work, key: str) -> None:
    film, content, clips = json.loads(key)
    known = work.records.content(content).film
    with tempfile.TemporaryDirectory() as scratch:
        targets = [Path(scratch, f"{name}.mp4") for name, _, _ in clips]
        reason = ""
        try:
            cutting.write(
                Path(work.videos, film),
                known.file.index,
                [Clip(start, end) for _, start, end in clips],
                targets,
                work.settings.output,
                codec=known.codec,
                slack=work.settings.clips.trim,
            )
        except (av.error.FFmpegError, DataError) as error:
            reason = video_container.reason_of(error)
        for (name, _, _), target in zip(clips, targets, strict=True):
            try:
                if reason:
                    raise Unusable(reason)
                texts, failure = texts_of(target, work.settings.captions), ""
            except Unusable as error:
                texts, failure = [], f"caption {error}"
            found = {"identity": _identity(work), "texts": texts, "failure": failure}
            files.replace(_path(work, name), json.dumps(found).encode())


def texts_of(video: Path, settings: Captions) -> list[str]:
    """The captions of a clip's file, the middle frame's twice where there are three.

    Raises Unusable where a command fails, DataError where it cannot be started.
    """
    frames, _ = video_io.read_video(video)
    image = video.with_suffix(".png")
    Image.fromarray(frames[len(frames) // 2]).save(image)
    files = {"image": str(image), "video": str(video)}
    frame = run_command(settings.frame, **files) if settings.frame else ""
    clip = run_command(settings.clip, **files) if settings.clip else ""
    if settings.merge:
        return [frame, frame, clip, run_command(settings.merge, frame=frame, clip=clip)]
    return [text for text in (frame, clip) if text]


def run_command(command: str, **values: str) -> str:
    """The text that a command prints, as one line.

    command: in which `{name}` stands for one of `values`. Raises Unusable where it fails or prints
    nothing, DataError where it cannot be started or names another value.
    """
    try:
        arguments = [part.format(**values) for part in shlex.split(command)]
    except (KeyError, IndexError, ValueError) as error:
        known = ", ".join(f"{{{name}}}" for name in values)
        raise DataError(
            f"captions: {command!r} is no command ({error}); it may use {known}"
        ) from None
    try:
        done = subprocess.run(
            arguments, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except OSError as error:
        raise DataError(f"captions: {arguments[0]!r} cannot be started: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise Unusable(f"took more than {_SECONDS} s") from None
    text = " ".join(done.stdout.split())
    if done.returncode or not text:
        lines = done.stderr.strip().splitlines()
        detail = f": {lines[-1]}" if lines else ""
        raise Unusable(f"failed with status {done.returncode}{detail}")
    return text_files.clean(text)
