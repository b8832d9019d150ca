import jax
import numpy as np
import pytest

from vdm_jax.diffusion import masks

SHAPE = (4, 8, 12)
KEY = jax.random.key(0)


def of(*kinds, n=64):
    return np.asarray(masks.draw(KEY, n, SHAPE, kinds))[..., 0]


@pytest.mark.parametrize(
    "kind,known",
    [
        ("none", []),
        ("first_frame", [0]),
        ("first_two_frames", [0, 1]),
        ("first_and_last", [0, 3]),
    ],
)
def test_whole_frames(kind, known):
    expected = np.isin(np.arange(4), known)[None, :, None, None]
    np.testing.assert_array_equal(of(kind), np.broadcast_to(expected, (64, *SHAPE)))


def test_a_box_stays_where_it_is_and_is_a_box():
    inside = of("outpaint")
    assert (inside == inside[:, :1]).all()
    rows, columns = inside[:, 0].max(2), inside[:, 0].max(1)
    np.testing.assert_array_equal(inside[:, 0], rows[:, :, None] * columns[:, None])
    for sides, length in ((rows.sum(1), 8), (columns.sum(1), 12)):
        assert sides.min() >= length // 4 and sides.max() <= length * 3 // 4
        assert len(set(sides)) > 2
    assert (np.abs(np.diff(rows)).sum(1) <= 2).all()  # no gaps
    np.testing.assert_array_equal(of("inpaint"), 1 - inside)
    still = of("cinemagraph")
    np.testing.assert_array_equal(still[:, 1:], 1 - inside[:, 1:])
    assert (still[:, 0] == 1).all()


def test_kinds_are_drawn_evenly():
    drawn = of("none", "first_frame", n=1000)
    assert abs(drawn[:, 0, 0, 0].mean() - 0.5) < 0.05


def test_an_unknown_kind_is_told():
    with pytest.raises(ValueError, match="masks: frames; allowed are none, first_frame"):
        of("none", "frames")


def test_key_frames_are_evenly_spaced_with_both_ends():
    drawn = np.asarray(masks.draw(KEY, 64, (13, 2, 2), ("key_frames",)))
    assert (drawn == drawn[:, :, :1, :1]).all()
    found = {tuple(np.flatnonzero(row)) for row in drawn[:, :, 0, 0, 0]}
    assert found == {tuple(range(0, 13, skip)) for skip in (2, 3, 4, 6, 12)}


def test_frames_at_the_ends_are_drawn_in_all_numbers():
    for kind, counts in (("beginning", {1, 2, 3}), ("end", {1, 2, 3}), ("ends", {2})):
        drawn = of(kind)
        frames = drawn[:, :, 0, 0]
        assert (drawn == frames[:, :, None, None]).all()
        assert set(frames.sum(1)) == counts
        # Ones, then zeros; the other way round; or zeros between ones.
        ends = {"beginning": (1, 0), "end": (0, 1), "ends": (1, 1)}[kind]
        assert (frames[:, 0] == ends[0]).all() and (frames[:, -1] == ends[1]).all()
        assert (np.abs(np.diff(frames)).sum(1) <= sum(ends)).all()
    long = np.asarray(masks.draw(KEY, 64, (13, 1, 1), ("ends",)))[:, :, 0, 0, 0]
    assert set(long.sum(1)) == {2 * count for count in range(1, 7)}
