"""The measure of seams."""

import numpy as np

from benchmarks import lumiere


def test_a_seam_is_seen_where_windows_meet():
    videos = np.zeros((2, 8, 4, 4, 3), np.uint8)
    videos[:, 1::2] = 10  # every frame differs from the next by 10
    energy = lumiere.difference_energy(videos)
    np.testing.assert_array_equal(energy, np.full(7, 100.0))
    assert lumiere.at_borders(energy, {4}) == 1.0
    videos[:, 4:] += 10  # frames 3 and 4 by 0, and 8 frames have 7 places
    energy = lumiere.difference_energy(videos)
    assert lumiere.at_borders(energy, {4}) == 0.0
    assert lumiere.at_borders(energy, {4, 6}) == 0.5
