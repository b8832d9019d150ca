"""Clips spread over the processes of a run: each works on its share, all of them get the whole."""

from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Shaped

T = TypeVar("T")


def by_process(function: Callable[..., T], *arrays: Shaped[np.ndarray, "n ..."]) -> T:
    """`function(*arrays)`, each process computing the rows of its share.

    Every process calls this with the same arrays, of one row a clip, and has the same result: an
    array of n rows, or a tuple of such. Shares are consecutive and of one size, so that all
    processes run one compiled program; the last are filled up with the last clip. What a row
    becomes must not depend on the others.
    """
    count, processes = len(arrays[0]), jax.process_count()
    if processes == 1 or not count:
        return function(*arrays)
    size = -(-count // processes)
    start = jax.process_index() * size
    rows = np.minimum(np.arange(start, start + size), count - 1)
    found = function(*(array[rows] for array in arrays))
    return jax.tree.map(lambda part: _gathered(np.asarray(part))[:count], found)


def _gathered(rows: Shaped[np.ndarray, "m ..."]) -> Shaped[np.ndarray, "n ..."]:
    """The rows of all processes, in their order, bit by bit: as bytes, because JAX would round
    64 bits to 32."""
    flat = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
    every = np.asarray(multihost_utils.process_allgather(flat))
    return every.reshape(-1, flat.shape[1]).view(rows.dtype).reshape(-1, *rows.shape[1:])
