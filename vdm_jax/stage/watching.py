"""Watching samplers from outside of the code that calls them: progress, estimates, and an end.

A page or a service calls a function that samples somewhere inside. Within `watched(watcher)` every
sampler of this thread reports to the watcher. An exception in the watcher ends the sampling: the
call fails with JAX's error, whose text holds the watcher's.
"""

import contextlib
import contextvars
import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

# callback(step, steps), called while a batch is being sampled.
Callback = Callable[[int, int], None]
# preview(step, steps, videos), called now and then with the current estimates x̂ of a batch's
# videos, uint8 n f h w c, a padded batch whole.
Preview = Callable[[int, int, np.ndarray], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Watcher:
    """What samplers call while they run.

    A sampler compiles these functions into its program, and keeps the program for as long as it is
    called with equal ones: one watcher for many jobs costs one compilation.
    """

    callback: Callback
    preview: Preview


_CURRENT: contextvars.ContextVar[Watcher | None] = contextvars.ContextVar("watcher", default=None)


@contextlib.contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Within it, samplers of this thread that are called without callbacks call the watcher's."""
    token = _CURRENT.set(watcher)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current() -> Watcher | None:
    """The watcher of this thread, None = there is none."""
    return _CURRENT.get()
