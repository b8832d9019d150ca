import jax
import numpy as np
import pytest

from vdm_jax.diffusion import masks

SHAPE = (4, 8, 12)
KEY = jax.random.key(0)


def of(*kinds, n=64):
    return np.asarray(masks.draw(KEY, n, SHAPE, kinds))[..., 0]


@pytest.mark.parametrize(
    "kind,known", [("none", []), ("first_frame", [0]), ("first_and_last", [0, 3])]
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


@pytest.mark.parametrize("kind,turn", [("beginning", 1), ("end", -1)])
def test_runs_are_known_at_one_end_and_never_everywhere(kind, turn):
    drawn = of(kind)[:, ::turn, 0, 0]
    np.testing.assert_array_equal(drawn, np.sort(drawn, axis=1)[:, ::-1])  # known, then unknown
    assert set(drawn.sum(1)) == {1, 2, 3}
