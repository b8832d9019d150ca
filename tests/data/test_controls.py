"""Control videos: each kind, and what is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.data import controls
from vdm_jax.models.hed import HED
from vdm_jax.weights import hed

SQUARE = np.zeros((2, 32, 32, 3), np.uint8)
SQUARE[0, 8:24, 8:24], SQUARE[1, 8:24, 12:28] = 255, 255


def test_canny_draws_the_border_of_a_square_in_each_frame():
    pytest.importorskip("cv2")
    found = controls.canny(SQUARE)
    assert found.shape == SQUARE.shape and set(np.unique(found)) == {0, 255}
    for frame, left in zip(found[..., 0], (8, 12), strict=True):
        rows, columns = np.nonzero(frame)
        assert abs(columns.min() - left) <= 1 and abs(columns.max() - left - 15) <= 1
        assert abs(rows.min() - 8) <= 1 and abs(rows.max() - 23) <= 1
        assert not frame[12:20, left + 4 : left + 12].any()  # inside
    faint = SQUARE // 16  # gradients of 15
    assert not controls.canny(faint).any()
    assert controls.canny(faint, low=10, high=20).any()


def test_hed_is_the_networks_edges_in_grey(monkeypatch):
    network = HED(widths=(2, 2), depths=(1, 1))
    params = {
        name: {"kernel": np.full(shape, 0.01, np.float32), "bias": np.zeros(shape[-1], np.float32)}
        for name, shape in {
            "conv_0_0": (3, 3, 3, 2),
            "side_0": (2, 1),
            "conv_1_0": (3, 3, 2, 2),
            "side_1": (2, 1),
            "fuse": (2, 1),
        }.items()
    }
    monkeypatch.setattr(hed, "load", lambda: hed.Loaded(network, params))
    found = controls.make("hed", SQUARE)
    expected = network.apply({"params": params}, jnp.asarray(SQUARE, jnp.float32))
    np.testing.assert_array_equal(found[..., :1], np.rint(255 * expected))
    np.testing.assert_array_equal(found[..., 0], found[..., 2])
    assert found.dtype == np.uint8 and found.shape == SQUARE.shape


def test_depth_gets_three_channels_and_poses_stay():
    depth = np.arange(32, dtype=np.uint8).reshape(2, 4, 4, 1)
    found = controls.make("depth", depth)
    np.testing.assert_array_equal(found, np.repeat(depth, 3, -1))
    np.testing.assert_array_equal(controls.make("pose", SQUARE), SQUARE)


@pytest.mark.parametrize(
    "call,message",
    [
        (lambda: controls.make("lines", SQUARE), "control = 'lines': allowed are canny, hed, "),
        (lambda: controls.make("canny", SQUARE[..., :1]), "canny: video .* of 3 channels"),
        (lambda: controls.make("depth", SQUARE[..., :2]), "depth: video .* of 1 or 3 channels"),
        (lambda: controls.make("pose", SQUARE[..., :1]), "pose: video .* of 3 channels"),
        (lambda: controls.canny(SQUARE, low=5, high=4), "low = 5, high = 4"),
    ],
)
def test_what_is_no_control_video_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
