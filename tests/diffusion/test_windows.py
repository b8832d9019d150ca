import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion import windows
from vdm_jax.diffusion.predictions import to_prediction

KEY = jax.random.key(0)
Z = jax.random.normal(KEY, (2, 9, 8, 8, 3))
LOGSNR = jnp.array([0.5, -1.0])


def of_each_element(z, logsnr, cond):
    """Predicts each element of x from z and the condition there, and from nothing else."""
    return to_prediction("x", jnp.tanh(z) + cond["low_res"], z, logsnr)


def of_three_frames(z, logsnr, cond):
    """Predicts x from three frames, zeros beyond the ends: a reach of one frame."""
    padded = jnp.pad(z, [(0, 0), (1, 1), (0, 0), (0, 0), (0, 0)])
    return to_prediction("x", padded[:, :-2] - 2 * z + padded[:, 2:], z, logsnr)


def cond():
    low_res = jax.random.normal(jax.random.key(1), Z.shape)
    return {"low_res": low_res, "keep_text": jnp.ones(2, bool)}


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("weights", windows.WEIGHTS)
@pytest.mark.parametrize("axis,size,overlap", [(1, 4, 2), (2, 5, 1), (3, 3, 0)])
def test_windows_of_a_pointwise_denoiser_say_what_it_says_whole(
    axis, size, overlap, weights, together
):
    cut = windows.windowed(
        of_each_element,
        axis=axis,
        size=size,
        overlap=overlap,
        weights=weights,
        together=together,
        like=("low_res",),
    )
    whole, joined = (f(Z, LOGSNR, cond()) for f in (of_each_element, cut))
    chex.assert_trees_all_close(joined.x, whole.x, atol=1e-5)
    chex.assert_trees_all_close(joined.eps, whole.eps, atol=1e-5)


def test_core_weights_are_exact_where_half_of_the_overlap_is_the_reach_and_not_below():
    whole = of_three_frames(Z, LOGSNR, {}).x
    exact = windows.windowed(of_three_frames, axis=1, size=4, overlap=2)(Z, LOGSNR, {}).x
    short = windows.windowed(of_three_frames, axis=1, size=4, overlap=0)(Z, LOGSNR, {}).x
    chex.assert_trees_all_close(exact, whole, atol=1e-5)
    assert jnp.abs(short - whole).max() > 0.1


@pytest.mark.parametrize("weights", ["uniform", "ramp"])
def test_overlapping_predictions_are_averaged_alike_together_and_in_turn(weights):
    settings = {"axis": 1, "size": 4, "overlap": 2, "weights": weights}
    in_turn = windows.windowed(of_three_frames, **settings)(Z, LOGSNR, {})
    together = windows.windowed(of_three_frames, **settings, together=True)(Z, LOGSNR, {})
    chex.assert_trees_all_close(in_turn, together, atol=1e-5)
    # By hand: frame 3 is in the windows of frames 0-3 and 2-5.
    first, second = (of_three_frames(Z[:, a:b], LOGSNR, {}).x for a, b in ((0, 4), (2, 6)))
    share = {"uniform": (0.5, 0.5), "ramp": (1 / 3, 2 / 3)}[weights]
    by_hand = share[0] * first[:, 3] + share[1] * second[:, 1]
    chex.assert_trees_all_close(in_turn.x[:, 3], by_hand, atol=1e-5)


def test_a_window_over_the_whole_is_the_denoiser_itself():
    cut = windows.windowed(of_three_frames, axis=1, size=9, overlap=3, weights="ramp")
    chex.assert_trees_all_equal(cut(Z, LOGSNR, {}), of_three_frames(Z, LOGSNR, {}))


@pytest.mark.parametrize("length,size,overlap", [(9, 4, 1), (10, 4, 2), (7, 6, 5), (5, 8, 0)])
@pytest.mark.parametrize("weights", windows.WEIGHTS)
def test_weights_sum_to_one_everywhere(length, size, overlap, weights):
    starts = windows.window_starts(length, size, overlap)
    size = min(size, length)
    total = np.zeros(length)
    for start, row in zip(
        starts, windows.window_weights(length, size, starts, weights), strict=True
    ):
        total[start : start + size] += row
    np.testing.assert_allclose(total, 1, atol=1e-6)


def test_what_cannot_be_is_told():
    with pytest.raises(ValueError, match="overlap = 4"):
        windows.window_starts(9, 4, 4)
    with pytest.raises(ValueError, match="multiples of 4"):
        windows.window_starts(32, 16, 6, multiple=4)
    with pytest.raises(ValueError, match="weights = 'sum'"):
        windows.windowed(of_three_frames, axis=1, size=4, overlap=1, weights="sum")


@pytest.mark.parametrize(("overlap", "rise"), [(1, [1 / 2]), (4, [0, 1 / 3, 2 / 3, 1])])
def test_ends_of_windows_do_not_count_with_the_weights_inner(overlap, rise):
    size = 8
    starts = windows.window_starts(16 - overlap, size, overlap)
    first, second = windows.window_weights(16 - overlap, size, starts, "inner")
    np.testing.assert_allclose(second[:overlap], rise, rtol=1e-6)
    np.testing.assert_allclose(first[-overlap:], rise[::-1], rtol=1e-6)
    assert (first[:-overlap] == 1).all() and (second[overlap:] == 1).all()
    for length in range(size, 24):  # the last window may overlap more, and several may overlap
        found = windows.window_starts(length, size, overlap)
        assert np.isfinite(windows.window_weights(length, size, found, "inner")).all()
