"""Drawn weights of TransNet V2, alike for its recording and its test. NumPy only."""

from collections.abc import Mapping, Sequence

import numpy as np

from tests.weights import drawn_weights


def draw(shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """As `drawn_weights.draw_all`, with variances that are positive, and counters."""
    drawn = drawn_weights.draw_all(shapes)
    for name in drawn:
        if name.endswith("running_var"):
            drawn[name] = 1 + drawn[name]
        elif name.endswith("num_batches_tracked"):
            drawn[name] = np.array(1, np.int64)
    return drawn
