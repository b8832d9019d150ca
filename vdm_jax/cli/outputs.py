"""What the subcommands write: checked before the work begins, arrays first, pictures last.

A folder that cannot be written to is refused before anything is computed. Samples go to disk batch
by batch. A picture that cannot be written is a warning, because the samples are there already.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeVar

if TYPE_CHECKING:
    import numpy as np

# A GIF of more clips than this is too large to look at; the MP4s and the npz are always complete.
AT_A_GLANCE = 64
PARTS = "samples_parts"
_LEAST_SIDE = 64  # pixels, of a clip in the GIF
_PROBE = 1 << 20  # bytes; less is no room for samples
_WARNINGS = 5  # pictures that warnings name; the rest is counted
_SLUG = 60  # characters of a prompt in a file's name
T = TypeVar("T")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attached:
    """What the files of samples are, and what they hold beside pictures.

    Attributes:
      formats: of a sample's file, of `video_formats.FORMATS`.
      recipe: how all samples are made again, as text (`data.recipes`).
      recipes: that of each sample alone; none: that of all.
      identities: what names each sample's content (`requests.identities`).
      sounds: for each sample, the file whose sound it gets, or None.
    """

    formats: Sequence[str] = ("mp4",)
    recipe: str = ""
    recipes: Sequence[str] = ()
    identities: Sequence[str] = ()
    sounds: Sequence[str | None] = ()


class Kept(Protocol):
    """Samples on disk that are deleted once they are elsewhere."""

    def remove(self) -> None: ...


class OutputError(ValueError):
    """A file or folder that cannot be written; the message names the flag, the path and why."""


def check_folder(path: str | Path, flag: str, needed: int = 0) -> Path:
    """Makes the folder of a flag, such as "--out", and writes and removes a file in it.

    needed: bytes that the results take at most; a warning says where the disk has less.
    Raises OutputError, naming the flag.
    """
    folder = Path(path)
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", str(path)):
        raise OutputError(
            f"{flag}={path}: must be a folder of this machine; mount a bucket first, for example "
            "with gcsfuse"
        )
    probe = folder / f".probe_{secrets.token_hex(4)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with probe.open("wb") as file:
                file.write(bytes(_PROBE))
                file.flush()
                os.fsync(file.fileno())
        finally:
            with contextlib.suppress(OSError):
                probe.unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        raise OutputError(_refusal(flag, path, error)) from error
    free = shutil.disk_usage(folder).free
    if free < needed:
        warn(f"{flag}={path}: {_size(free)} are free, and the results may take {_size(needed)}")
    return folder


def check_file(path: str | Path, flag: str) -> Path:
    """Makes the folder of a flag's file, and checks that the file can be written; what it holds
    already stays. Raises OutputError, naming the flag."""
    file = Path(path)
    if file.is_dir():
        raise OutputError(f"{flag}={path}: is a folder; give the name of a file")
    check_folder(file.parent, flag)
    if file.exists():
        try:
            with file.open("ab"):
                pass
        except OSError as error:
            raise OutputError(_refusal(flag, path, error)) from error
    return file


def in_first_process(work: Callable[[], T]) -> T | None:
    """Runs `work` in the first process; its result there, None in others.

    An error in it is raised in all processes, so that none of them waits for the first.
    """
    import jax

    if jax.process_count() == 1:
        return work()
    from vdm_jax.training import processes

    kept: list[T] = []
    processes.first_does(lambda: kept.append(work()))
    return kept[0] if kept else None


def warn(text: str) -> None:
    """Prints a warning, on stderr."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


class Pictures:
    """Writes pictures, and turns what goes wrong with one into a warning. A context manager."""

    def __init__(self) -> None:
        self._failed = 0

    def __enter__(self) -> "Pictures":
        return self

    def __exit__(self, *_) -> None:
        if self._failed > _WARNINGS:
            warn(f"{self._failed - _WARNINGS} more pictures could not be written")

    def write(self, path: Path, make: Callable[[], object]) -> bool:
        """Calls `make`, which writes `path`. Returns whether it did."""
        try:
            make()
        except Exception as error:  # whatever an encoder raises: the samples are not lost by it
            self._failed += 1
            if self._failed <= _WARNINGS:
                warn(f"{path} could not be written: {plain(error)}")
            return False
        return True


class Parts:
    """Samples on disk while they are drawn: OUT/samples_parts/NUMBER.npy, a file a batch.

    The same command goes on behind the last part. Parts of another command are kept under another
    name.

    Attributes:
      done: samples that are there.
    """

    def __init__(
        self, out: Path, identity: Mapping[str, object], count: int | None, name: str = PARTS
    ):
        """identity: what the samples depend on, as JSON can say it. count: samples in all; None =
        not known before they are drawn. name: of the folder in `out`."""
        self._folder = out / name
        text = json.dumps([identity, count], sort_keys=True)
        self._identity = hashlib.sha256(text.encode()).hexdigest()
        self._note = self._folder / "identity.json"
        self._parts: list[Path] = []
        self._replayed = 0  # parts
        self.done = 0
        self._count = count
        if self._folder.is_dir():
            self._take_up()
        with _naming(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            replace(self._note, json.dumps({"identity": self._identity, "count": count}).encode())

    def add(self, videos: "np.ndarray") -> None:
        """Writes the next samples, `n f h w c`. Raises OutputError, saying what is there."""
        import io

        import numpy as np

        path = self._folder / f"{self.done:08d}.npy"
        encoded = io.BytesIO()
        np.save(encoded, videos, allow_pickle=False)
        try:
            replace(path, encoded.getvalue())
        except OSError as error:
            some = "" if self._count is None else f" of {self._count}"
            raise OutputError(
                f"{path} could not be written: {plain(error)}. {self.done}{some} samples are in "
                f"{self._folder}; the same command goes on behind them"
            ) from error
        self._parts.append(path)
        self._replayed = len(self._parts)
        self.done += len(videos)

    def replay(self, count: int) -> "list[np.ndarray]":
        """The next `count` samples of an earlier run, or as many as there are, a part each.

        Further calls go on behind them. Nothing is left once a sample was added.
        """
        import numpy as np

        found: list[np.ndarray] = []
        while self._replayed < len(self._parts) and sum(map(len, found)) < count:
            found.append(np.load(self._parts[self._replayed], allow_pickle=False))
            self._replayed += 1
        return found

    def videos(self) -> "np.ndarray":
        """All samples, uint8 `n f h w c`."""
        import numpy as np

        return np.concatenate([np.load(path, mmap_mode="r") for path in self._parts])

    def remove(self) -> None:
        """Deletes the parts, once the samples are elsewhere."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def _take_up(self) -> None:
        import numpy as np

        try:
            same = json.loads(self._note.read_text())["identity"] == self._identity
        except (OSError, ValueError, KeyError, TypeError):
            same = False
        if not same:
            if any(self._folder.glob("*.npy")):
                kept = _unused(self._folder)
                self._folder.rename(kept)
                warn(f"{kept} holds samples of another command that did not finish")
            return
        while (path := self._folder / f"{self.done:08d}.npy").is_file():
            try:
                part = np.load(path, mmap_mode="r", allow_pickle=False)
            except (OSError, ValueError):  # the machine stopped while it was written
                break
            if part.ndim != 5 or not len(part):
                break
            if self._count is not None and self.done + len(part) > self._count:
                break
            self._parts.append(path)
            self.done += len(part)


def save_videos(
    path: Path,
    videos: "np.ndarray",
    prompts: Sequence[str],
    fps: float | None = None,
    attached: Attached | None = None,
) -> Path:
    """Writes `video`, uint8 n f h w c, `prompts`, n texts, `fps`, and `recipe` and `identities` of
    what is attached, as an .npz file, whole or not at all. Raises OutputError."""
    import numpy as np

    arrays = {"video": videos, "prompts": np.array(list(prompts), dtype=str)}
    if fps is not None:
        arrays["fps"] = np.float64(fps)
    if attached is not None and attached.recipe:
        arrays["recipe"] = np.array(attached.recipe)
    if attached is not None and attached.identities:
        arrays["identities"] = np.array(attached.identities)
    return save_arrays(path, arrays)


def save_arrays(path: Path, arrays: "Mapping[str, np.ndarray]") -> Path:
    """Writes an .npz file, whole or not at all. Raises OutputError."""
    import numpy as np

    partial = path.with_name(f"{path.name}.partial")
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with partial.open("wb") as file:
                np.savez_compressed(file, **arrays)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return path


def write_samples(
    out: Path,
    videos: "np.ndarray",
    prompts: Sequence[str],
    fps: float,
    parts: "Kept | None" = None,
    attached: Attached | None = None,
) -> None:
    """Writes samples, uint8 `n f h w c`, into the folder `out`, and prints the files' names.

    First samples.npz (see `save_videos`), then pictures: a file a sample, in each format (MP4),
    samples.gif and contact_sheet.png; of single frames a PNG a sample and the sheet. A picture that
    cannot be written is a warning. parts: of these samples; deleted at the end. Raises OutputError.
    """
    from vdm_jax.data import video_formats, video_io

    attached = attached or Attached()
    try:
        archive = save_videos(out / "samples.npz", videos, prompts, fps, attached)
    except OutputError as error:
        if parts is None:
            raise
        raise OutputError(
            f"{error}. All samples are in {out / PARTS}; the same command writes them"
        ) from error
    print(archive)
    total, still = len(videos), videos.shape[1] == 1
    texts = attached.recipes or [attached.recipe] * total
    sounds = attached.sounds or [None] * total

    with Pictures() as pictures:
        for kind in ("png",) if still else attached.formats:
            written, path = 0, out
            for index, (video, prompt) in enumerate(zip(videos, prompts, strict=True)):
                path = out / f"{index:04d}{_slug(prompt)}"
                sound = sounds[index] if kind in video_formats.WITH_SOUND else None
                written += pictures.write(
                    path.with_name(f"{path.name}.{kind}"),
                    lambda: video_formats.write(path, video, fps, kind, texts[index], sound),  # noqa: B023
                )
            ending = "_png/" if kind == "png" and not still else f".{kind}"
            print(f"{out}/*{ending}: {written} {'images' if still else 'clips'}")
        gif, sheet = out / "samples.gif", out / "contact_sheet.png"
        watchable = video_io.enlarge(videos[:AT_A_GLANCE], _LEAST_SIDE)
        if not still and pictures.write(
            gif,
            lambda: video_io.write_gif(
                gif, video_io.grid(watchable), fps=fps, comment=attached.recipe
            ),
        ):
            print(f"{gif} (the first {AT_A_GLANCE} of {total})" if total > AT_A_GLANCE else gif)
        numbered = [f"{index:04d} {prompt}" for index, prompt in enumerate(prompts)]
        if pictures.write(
            sheet,
            lambda: video_io.contact_sheet(sheet, videos, numbered, comment=attached.recipe),
        ):
            most = video_io.SHEET_CLIPS
            print(f"{sheet} ({most} of {total}, evenly chosen)" if total > most else sheet)
    if parts is not None:
        parts.remove()


def write_given(out: Path, shown: "np.ndarray", size: int, fps: float) -> None:
    """Writes what was known, uint8 `n f h w c`, as given.gif, and names it and given.npz.

    size: the least of a frame's sides in the picture.
    """
    from vdm_jax.data import video_io

    path = out / "given.gif"
    watchable = video_io.enlarge(shown[:AT_A_GLANCE], size)
    with Pictures() as pictures:
        if pictures.write(path, lambda: video_io.write_gif(path, video_io.grid(watchable), fps)):
            print(path)
    print(out / "given.npz")


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"{path} could not be written: {plain(error)}") from error


def replace(path: Path, content: bytes) -> None:
    """Writes a file, and its folder, whole or not at all. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _unused(path: Path) -> Path:
    names = (path.with_name(f"{path.name}_{number}") for number in range(1, 10_000))
    return next(name for name in names if not name.exists())


def _refusal(flag: str, path: str | Path, error: Exception) -> str:
    advice = "make room, or give another" if _is_full(error) else "give another"
    return f"{flag}={path}: cannot be written: {plain(error)}; {advice} folder"


def _is_full(error: Exception) -> bool:
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)


def plain(error: Exception) -> str:
    """An error's text; of the operating system's with the path that it is about."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.strerror}: {error.filename}" if error.filename else error.strerror
    return str(error) or type(error).__name__


def _size(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"


def _slug(prompt: str) -> str:
    """The beginning of a prompt, as part of a file's name."""
    slug = re.sub(r"[^a-z0-9]+", "_", prompt[: 4 * _SLUG].lower()).strip("_")[:_SLUG]
    return f"_{slug}" if slug else ""
