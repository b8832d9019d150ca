"""Films measured by a pool of processes; every film's record is written by the process that
measured it.

A film is one piece of work. What is recorded is not done again, so a run that was killed goes on
where it was: it loses the films in hand. A film that ends its process (some decoders do, at damaged
files) is found by measuring the suspects one at a time, and recorded as unusable.
"""

import concurrent.futures
import contextlib
import dataclasses
import fcntl
import multiprocessing
import multiprocessing.process
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from vdm_jax.data import index_cache, video_container, video_folder
from vdm_jax.data.curation import clip_scores, film, scan, text, transnet
from vdm_jax.data.curation.records import Content, Name, Records
from vdm_jax.data.curation.settings import Settings
from vdm_jax.data.curation.stages import Plan
from vdm_jax.data.source import DataError
from vdm_jax.data.video_container import Unusable

_LOCK = ".lock"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Work:
    """What every process is given.

    Attributes:
      videos: the folder of films.
      out: the folder of the records.
    """

    videos: str
    out: str
    settings: Settings

    @property
    def records(self) -> Records:
        return Records(self.out)


Call = Callable[[Work, str], None]
# Calls the first function for each key, in any order and in other processes, and yields the keys
# that are done. The second is called for a key that ended the process that worked on it.
Run = Callable[[Call, Call, Work, Sequence[str]], Iterator[str]]


def list_films(work: Work) -> tuple[list[str], dict[str, str]]:
    """(names of the films in a folder and below it, names that are left out with the reason).

    Raises DataError where there is no such folder.
    """
    root = Path(work.videos)
    if not root.is_dir():
        raise DataError(f"--videos={work.videos}: there is no such folder")
    paths, problems = video_folder.find_files(root)
    names = [str(path.relative_to(root)) for path in paths]
    left_out = {os.path.relpath(path, root): reason for path, reason in problems.items()}
    return names, left_out


def measure_all(
    work: Work, run: Run, progress: Callable[[str, int, int], None] = lambda *_: None
) -> dict[str, str]:
    """Measures all films of a folder that are not measured yet.

    run: see `Run`. progress: is called with a stage, the number of its films that are done, and of
    all.

    Returns the names that are left out because they are no files, with the reason. Raises
    DataError.
    """
    names, left_out = list_films(work)
    records = work.records
    records.make_folders()
    _check(work.settings)
    records.forget_others(set(names))
    fresh = [name for name in names if not _is_known(work, name)]
    for done, _ in enumerate(run(identify, fail, work, fresh), start=1):
        progress("identified", done, len(fresh))
    by_digest = {one.digest: one.name for one in records.names() if one.digest}
    # One name for each content, so a copy is not measured again.
    due = sorted(name for key, name in by_digest.items() if _is_due(work, key))
    for done, _ in enumerate(run(measure, fail, work, due), start=1):
        progress("measured", done, len(due))
    return left_out


def identify(work: Work, name: str) -> None:
    """Records a name: its content's digest, or why it cannot be used."""
    path = Path(work.videos, name)
    size, changed = _stamp(path)
    try:
        found = film.identify(path)
    except Unusable as reason:
        record = Name(name=name, size=size, changed=changed, failure=str(reason))
    else:
        record = Name(name=name, size=size, changed=changed, digest=found.digest)
        if work.records.content(found.digest) is None:
            work.records.put_content(Content(film=found))
    work.records.put_name(record)


def measure(work: Work, name: str) -> None:
    """Records what is measured of the content of a name."""
    records = work.records
    content = records.content(records.name(name).digest)
    try:
        found, measured = scan.measure(
            Path(work.videos, name), content.film, work.settings, content.measured
        )
        content = Content(film=found, measured=measured)
    except Exception as error:  # a damaged film, whatever it makes a library raise, is one row
        reason = video_container.reason_of(error)
        plan = Plan.of(work.settings).identity
        content = dataclasses.replace(content, failure=reason, failed_plan=plan)
    records.put_content(content)


def fail(work: Work, name: str) -> None:
    """Records a film that ended the process that read it."""
    size, changed = _stamp(Path(work.videos, name))
    reason = "reading it ended the process"
    work.records.put_name(Name(name=name, size=size, changed=changed, failure=reason))


def _is_known(work: Work, name: str) -> bool:
    known = work.records.name(name)
    if known is None or (known.digest and work.records.content(known.digest) is None):
        return False
    return (known.size, known.changed) == _stamp(Path(work.videos, name))


def _stamp(path: Path) -> tuple[int, int]:
    """Size and time of change; −1 of a file that cannot be looked at."""
    try:
        return index_cache.stamp(path)
    except OSError:
        return -1, -1


def _is_due(work: Work, digest: str) -> bool:
    content, plan = work.records.content(digest), Plan.of(work.settings)
    if content.failure and content.failed_plan == plan.identity:
        return False
    return bool(plan.missing(content.measured))


def _check(settings: Settings) -> None:
    """Fails where weights or a package are missing: once, and not for each film."""
    Plan.of(settings)
    if settings.cuts.transnet:
        transnet.load(settings.cuts.transnet)
    if settings.text.detector != "none":
        text.model_file()
    clip_scores.check(settings.look)


def in_pool(workers: int) -> Run:
    """Runs in so many processes."""

    def run(function: Call, died: Call, work: Work, keys: Sequence[str]) -> Iterator[str]:
        suspects: list[str] = []
        waiting = list(keys)
        while waiting:
            done: set[str] = set()
            try:
                for key in _pooled(function, work, waiting, workers):
                    done.add(key)
                    yield key
                waiting = []
            except BrokenProcessPool:
                rest = [key for key in waiting if key not in done]
                # Those that may have been in hand, in the order in which they were taken.
                suspects, waiting = rest[: 2 * workers], rest[2 * workers :]
                for key in suspects:
                    try:
                        list(_pooled(function, work, [key], 1))
                    except BrokenProcessPool:
                        died(work, key)
                    yield key

    return run


def _pooled(function: Call, work: Work, keys: Sequence[str], workers: int) -> Iterator[str]:
    pool = concurrent.futures.ProcessPoolExecutor(
        max(1, min(workers, len(keys))),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
    )
    try:
        waiting, places = set(), iter(keys)
        for key in places:
            waiting.add(pool.submit(_call, function, work, key))
            if len(waiting) < 2 * workers:
                continue
            done, waiting = concurrent.futures.wait(waiting, return_when="FIRST_COMPLETED")
            yield from (one.result() for one in done)
        for one in concurrent.futures.as_completed(waiting):
            yield one.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _call(function: Call, work: Work, key: str) -> str:
    function(work, key)
    return key


def use_one_thread() -> None:
    """Films are spread over processes, so each computes with one thread."""
    import cv2

    cv2.setNumThreads(1)


def _start() -> None:
    use_one_thread()
    # Ctrl-C reaches the whole group; the process that started the pool ends it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_follow, args=(multiprocessing.parent_process(),), daemon=True).start()


def _follow(parent: multiprocessing.process.BaseProcess) -> None:
    """Ends this process when its parent is killed; it would wait for work for ever."""
    parent.join()
    os._exit(1)


@contextlib.contextmanager
def locked(out: str | os.PathLike) -> Iterator[None]:
    """Holds a folder against a second run, while the context lasts. Raises DataError."""
    Path(out).mkdir(parents=True, exist_ok=True)
    with Path(out, _LOCK).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DataError(f"--out={out}: another run is writing there") from None
        yield
