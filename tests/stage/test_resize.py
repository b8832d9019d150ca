import chex
import jax.numpy as jnp
import pytest

from vdm_jax.stage import resize


def test_coarse_and_fine_videos():
    video = jnp.arange(2 * 4 * 4 * 6 * 1, dtype=jnp.float32).reshape(2, 4, 4, 6, 1)
    coarse = resize.coarsen(video, (2, 2, 2))
    assert coarse.shape == (2, 2, 2, 2, 1)
    chex.assert_trees_all_close(coarse[0, 1, 0, 1, 0], video[0, 2, :2, 3:].mean())
    constant = jnp.full((1, 2, 2, 2, 1), 3.0)
    chex.assert_trees_all_close(resize.refine(constant, (4, 4, 8)), jnp.full((1, 4, 4, 8, 1), 3.0))
    blank = resize.refine(constant, (6, 2, 2), "blank")[0, :, 0, 0, 0]
    chex.assert_trees_all_equal(blank, jnp.array([3.0, 0, 0, 3, 0, 0]))
    ramp = resize.refine(jnp.array([0.0, 4.0]).reshape(1, 1, 1, 2, 1), (1, 1, 4))[0, 0, 0, :, 0]
    chex.assert_trees_all_close(ramp, jnp.array([0.0, 1.0, 3.0, 4.0]))  # half-pixel centres
    with pytest.raises(ValueError, match="whole multiples"):
        resize.coarsen(video, (3, 2, 2))
    with pytest.raises(ValueError, match="fill = 'linear'"):
        resize.refine(constant, (4, 2, 2), "linear")
