"""Rendering ahead: what a generator of clips yields is drawn by several threads."""

import collections
import concurrent.futures
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def ahead(render: Callable[[Job], Result], jobs: Iterable[Job]) -> Iterator[Result]:
    """Yields `render(job)` of every job, in order. As many run at once as this machine has cores:
    NumPy lets threads run together."""
    threads = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        waiting = iter(jobs)
        running = collections.deque(
            pool.submit(render, job) for job in itertools.islice(waiting, threads + 1)
        )
        while running:
            result = running.popleft().result()
            for job in itertools.islice(waiting, 1):
                running.append(pool.submit(render, job))
            yield result
