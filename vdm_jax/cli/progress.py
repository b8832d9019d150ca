"""Progress of long work: a bar on a terminal, else a line now and then."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

_Item = TypeVar("_Item")
EVERY = 30.0  # seconds from one line to the next


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
    elif sys.stdout.isatty():
        from rich.progress import track as bar

        yield from bar(items, name, total=total, transient=True)
    else:
        yield from _lines(items, name, total)


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
