"""Progress of long work: a bar on a terminal, else a line now and then, or a listener's calls."""

import contextlib
import contextvars
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

_Item = TypeVar("_Item")
EVERY = 30.0  # seconds from one line to the next
# listener(name, done, total): the work's name, how much of it is done, and how much there is.
Listener = Callable[[str, int, int], None]
_LISTENER: contextvars.ContextVar[Listener | None] = contextvars.ContextVar(
    "listener", default=None
)


@contextlib.contextmanager
def heard(listener: Listener) -> Iterator[None]:
    """Within it, progress of this thread is the listener's, and nothing is printed."""
    token = _LISTENER.set(listener)
    try:
        yield
    finally:
        _LISTENER.reset(token)


@contextlib.contextmanager
def report(name: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A function (done, total) that shows how far the work within is. quiet: shows nothing."""
    from rich.progress import Progress

    listener = _LISTENER.get()
    with Progress(transient=True, disable=quiet or listener is not None) as bar:
        task = bar.add_task(name, total=None)

        def show(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            if listener is not None and not quiet:
                listener(name, done, total)

        yield show


def track(
    items: Iterable[_Item], name: str, total: int | None = None, *, quiet: bool = False
) -> Iterator[_Item]:
    """The items, while progress is shown: how many are done, and the time left.

    total: their number, where they have no length. quiet: shows nothing.
    """
    if total is None:
        total = len(items)
    if quiet:
        yield from items
    elif (listener := _LISTENER.get()) is not None:
        yield from _told(items, name, total, listener)
    elif sys.stdout.isatty():
        from rich.progress import track as bar

        yield from bar(items, name, total=total, transient=True)
    else:
        yield from _lines(items, name, total)


def _told(items: Iterable[_Item], name: str, total: int, listener: Listener) -> Iterator[_Item]:
    listener(name, 0, total)
    for done, item in enumerate(items, 1):
        yield item
        listener(name, done, total)


def _lines(items: Iterable[_Item], name: str, total: int) -> Iterator[_Item]:
    started = said = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - said >= EVERY and done < total:
            said, each = now, (now - started) / done
            print(
                f"{name}: {done} of {total}, {each:.3g} s each, {(total - done) * each:.0f} s left",
                flush=True,
            )
