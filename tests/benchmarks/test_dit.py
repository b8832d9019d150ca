"""The measurements of a video transformer, on inputs with known results."""

import numpy as np
import pytest

from benchmarks import dit


def test_the_shift_of_colour_is_that_of_means():
    frames = np.full((3, 5, 4, 4, 3), 100, np.uint8)
    decoded = frames.copy()
    decoded[:, 0] += 5
    decoded[:, 1:, ::2] += 2  # half of the pixels up, half down: no shift
    decoded[:, 1:, 1::2] -= 2
    first, others = dit.colour_shift(frames, decoded)
    assert (first["shift of colour"], first["with its sign"]) == (5.0, 5.0)
    assert others["shift of colour"] == 0.0
    assert others["PSNR, dB"] == pytest.approx(20 * np.log10(255 / 2))


def test_mixed_sizes_are_those_of_whole_patches():
    for frames, height, width, clips in dit.MIXED:
        assert (frames - 1) % 4 == 0 and height % 8 == width % 8 == 0 and clips >= 1
