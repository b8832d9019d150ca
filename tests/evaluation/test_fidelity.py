"""PSNR, SSIM, warp error and consistency against closed forms and plain loops."""

import sys
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.evaluation import fidelity
from vdm_jax.evaluation.fidelity import (
    frame_consistency,
    occluded,
    psnr,
    ssim,
    warp,
    warp_error,
)

ndimage = pytest.importorskip("scipy.ndimage")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def texture(height, width, channels=3, seed=0):
    x = np.random.default_rng(seed).normal(size=(height, width, channels))
    x = ndimage.gaussian_filter(x, (2, 2, 0))
    x = (x - x.min()) / (x.max() - x.min())
    return np.round(255 * x).astype(np.uint8)


def cut(image, places, size=48):
    """A video of windows of an image; a window further right shows motion to the left."""
    return np.stack([image[y : y + size, x : x + size] for y, x in places])[None]


# PSNR and SSIM


def test_psnr_in_closed_form():
    reference = noise(2, 3, 8, 8, 3) // 2
    videos = reference.copy()
    videos[0] += 10
    videos[1, :2] += 1
    videos[1, 2, :, :, 0] += 5  # a third of the values
    result = psnr(videos, reference)
    expected = [
        20 * np.log10(255 / 10),
        (2 * 20 * np.log10(255) + 10 * np.log10(255**2 * 3 / 25)) / 3,
    ]
    np.testing.assert_allclose(result.clips, expected)
    assert result.mean == pytest.approx(np.mean(expected))
    np.testing.assert_array_equal(psnr(reference, videos).clips, result.clips)  # no wrap-around
    # An equal frame is as one value off by one, which is the least error, and hides no other frame.
    least = reference.copy()
    least[0, 0, 0, 0, 0] += 1
    bound = 10 * np.log10(255**2 * 8 * 8 * 3)
    np.testing.assert_allclose(psnr(reference, reference).clips, bound)
    np.testing.assert_allclose(psnr(least, reference).clips, bound)


def ssim_by_loops(a, b):
    """Of two frames of floats: each window on its own, with a Gaussian of two dimensions."""
    place = np.arange(11) - 5
    window = np.exp(-(place[:, None] ** 2 + place**2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            c1, c2 = 2.55**2, 7.65**2
            values.append(
                (2 * mp * mq + c1) * (2 * cov + c2) / ((mp**2 + mq**2 + c1) * (vp + vq + c2))
            )
    return np.mean(values)


@pytest.mark.parametrize("channels", [1, 3])
def test_ssim_is_that_of_the_paper_on_luma(channels):
    reference = np.stack([texture(13, 17, channels, seed) for seed in range(4)])
    reference = reference.reshape(2, 2, 13, 17, channels)
    videos = reference // 2 + noise(*reference.shape) // 4
    weights = np.array([0.299, 0.587, 0.114] if channels == 3 else [1.0])
    expected = [
        np.mean([ssim_by_loops(v @ weights, r @ weights) for v, r in zip(*pair, strict=True)])
        for pair in zip(videos, reference, strict=True)
    ]
    result = ssim(videos, reference)
    np.testing.assert_allclose(result.clips, expected, rtol=1e-10)
    assert result.mean == pytest.approx(np.mean(expected))
    np.testing.assert_allclose(ssim(reference, videos).clips, expected, rtol=1e-10)


def test_ssim_of_known_pairs():
    x = noise(1, 2, 16, 16, 3)
    assert ssim(x, x).mean == pytest.approx(1, abs=1e-12)
    flat = np.full((1, 1, 11, 11, 1), 100, np.uint8)
    brighter = flat + np.uint8(50)
    expected = (2 * 100 * 150 + 2.55**2) / (100**2 + 150**2 + 2.55**2)
    assert ssim(flat, brighter).mean == pytest.approx(expected)
    assert ssim(x, 255 - x).mean < -0.9


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_unequal_or_odd_videos_are_refused(metric):
    x = noise(2, 2, 16, 16, 3)
    with pytest.raises(ValueError, match=r"\[2, 2, 16, 16, 3\] and references \[2, 1, 16, 16, 3\]"):
        metric(x, x[:, :1])
    with pytest.raises(ValueError, match=r"videos float32\[2, 2, 16, 16, 3\]"):
        metric(x.astype(np.float32), x)
    with pytest.raises(ValueError, match=r"references uint8\[2, 16, 16, 3\]"):
        metric(x, x[0])
    with pytest.raises(ValueError, match="1 or 3 channels"):
        metric(x[..., :2], x[..., :2])
    with pytest.raises(ValueError, match="not empty"):
        metric(x[:0], x[:0])


def test_ssim_needs_room_for_its_window():
    x = noise(1, 1, 10, 16, 3)
    with pytest.raises(ValueError, match="11 or more"):
        ssim(x, x)


# Warping


def test_warping_follows_the_flow():
    image = texture(9, 12, 2).astype(np.float64)
    flow = np.zeros((9, 12, 2))
    np.testing.assert_array_equal(warp(image, flow), image)
    flow[..., 0] = 3  # along the width
    np.testing.assert_array_equal(warp(image, flow)[:, :9], image[:, 3:])
    np.testing.assert_array_equal(warp(image, flow)[:, 9:], np.repeat(image[:, -1:], 3, 1))
    # Against an interpolation of its own, off the grid, inside and beyond the edges.
    flow = np.random.default_rng(0).normal(size=flow.shape) * 4
    y, x = np.mgrid[:9, :12]
    coordinates = [y + flow[..., 1], x + flow[..., 0]]
    for channel in range(2):
        expected = ndimage.map_coordinates(
            image[..., channel], coordinates, order=1, mode="nearest"
        )
        np.testing.assert_allclose(warp(image, flow)[..., channel], expected, atol=1e-9)
    with pytest.raises(ValueError, match=r"\[9, 12, 2\], flow \[12, 9, 2\]"):
        warp(image, flow.transpose(1, 0, 2))


def test_occlusion_by_the_papers_thresholds():
    def flows(forward, backward):
        """Constant flows along the width; is a pixel in the middle occluded?"""
        w = np.zeros((2, 9, 40, 2))
        w[0, ..., 0], w[1, ..., 0] = forward, backward
        return bool(occluded(*w)[4, 20])

    assert not flows(5, -5)
    # |w + w̃|² against 0.01 (|w|² + |w̃|²) + 0.5
    assert not flows(0, 0.70) and flows(0, 0.72)
    assert not flows(10, -8.9) and flows(10, -8.2)  # 1.21 < 2.29, 3.24 > 2.17
    # Motion boundaries: |∇w|² against 0.01 |w|² + 0.002
    for width, step, expected in ((0, 0.04, False), (0, 0.05, True), (3, 0.29, False)):
        w = np.zeros((9, 40, 2))
        w[..., 0] = width
        w[5:, :, 1] = step
        back = np.zeros_like(w)
        back[..., 0] = -width
        assert occluded(w, back)[4, 20] == expected
        assert not occluded(w, back)[2, 20]
    w[5:, :, 1] = 0.31
    assert occluded(w, back)[4, 20]
    # What leaves the frame.
    w = np.zeros((9, 40, 2))
    w[..., 0], back[..., 0] = 3, -3
    np.testing.assert_array_equal(occluded(w, back), np.arange(40)[None] + 0 * w[..., 0] > 36)
    np.testing.assert_array_equal(occluded(back, w), np.arange(40)[None] + 0 * w[..., 0] < 3)
    w, back = w[..., ::-1], back[..., ::-1]  # down and up
    np.testing.assert_array_equal(occluded(w, back)[:, 0], np.arange(9) > 5)
    np.testing.assert_array_equal(occluded(back, w)[:, 0], np.arange(9) < 3)
    # The flow back counts where the pixel has gone.
    w, back = np.zeros((9, 40, 2)), np.zeros((9, 40, 2))
    w[..., 0], back[:, 25:, 0] = 5, -5
    np.testing.assert_array_equal(occluded(w, back)[4], (np.arange(40) < 20) | (np.arange(40) > 34))


@pytest.mark.parametrize("flow", ["dis", "farneback"])
def test_warp_error_of_moved_texture_is_0_and_of_flicker_is_not(flow):
    pytest.importorskip("cv2")
    image = texture(80, 80)
    moved = cut(image, [(10 + t, 10 + 2 * t) for t in range(4)])
    still = np.repeat(moved[:, :1], 4, 1)
    result = warp_error(np.concatenate([moved, still]), flow=flow)
    assert result.clips.max() < 1e-4 and (result.visible > 0.85).all()
    assert result.mean == pytest.approx(result.clips.mean())
    # Without warping the motion would be an error.
    assert np.mean((np.diff(moved.astype(float), axis=1) / 255) ** 2) > 50 * result.clips[0]
    # Brightness that changes by turns from b to b + 20: its square is the error.
    flicker = still // 2 + np.uint8(20) * np.array([0, 1, 0, 1], np.uint8)[:, None, None, None]
    assert warp_error(flicker, flow=flow).mean == pytest.approx((20 / 255) ** 2, rel=0.02)
    guided = warp_error(flicker, guides=still, flow=flow)
    assert guided.mean == pytest.approx((20 / 255) ** 2, rel=1e-3)
    jumps = np.random.default_rng(0).integers(0, 32, (4, 2))
    jittered = warp_error(cut(image, jumps), flow=flow)
    assert jittered.mean > 30 * result.clips[0] and jittered.visible[0] < result.visible[0]


def test_warp_error_looks_at_visible_pixels_only(monkeypatch):
    # A square that appears out of nowhere is occluded in one frame, by the flows given here.
    video = np.zeros((1, 2, 16, 16, 1), np.uint8)
    video[0, 1, 4:8, 4:8] = 255
    w = np.zeros((16, 16, 2))
    w[4:8, 4:8] = 9  # straight ahead and not back again
    monkeypatch.setattr("vdm_jax.evaluation.fidelity._flow_function", lambda name: lambda a, b: w)
    result = warp_error(video)
    assert result.mean == 0 and 0.8 < result.visible[0] < 1
    w[:] = 99
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = warp_error(video)
    assert np.isnan(result.mean) and np.isnan(result.clips[0]) and result.visible[0] == 0
    w[:] = 0
    assert warp_error(video).mean == pytest.approx(16 / 256)


def test_warp_error_refuses_bad_arguments(monkeypatch):
    x = noise(1, 2, 16, 16, 3)
    with pytest.raises(ValueError, match="flow 'raft'"):
        warp_error(x, flow="raft")
    with pytest.raises(ValueError, match="of 1 frames"):
        warp_error(x[:, :1])
    with pytest.raises(ValueError, match="16 x 8"):
        warp_error(x[..., :8, :])
    with pytest.raises(ValueError, match="guides"):
        warp_error(x, guides=x[:, :1])
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ImportError, match=r"pip install 'vdm_jax\[eval\]'"):
        warp_error(x)


# Consistency


def test_frame_consistency_is_the_cosine():
    angles = np.array([[0.0, 0.0, 0.0], [0.0, 1.0, 3.0]])
    features = np.stack([np.cos(angles), np.sin(angles)], -1) * np.array([[[1.0], [5.0], [0.1]]])
    result = frame_consistency(features)
    expected = [1, (np.cos(1) + np.cos(2)) / 2]
    np.testing.assert_allclose(result.clips, expected)
    assert result.mean == pytest.approx(np.mean(expected))
    for wrong in (features[:, :1], features[0], 0 * features, np.nan * features):
        with pytest.raises(ValueError, match="features"):
            frame_consistency(wrong)


def test_the_warp_error_takes_rifes_flow(monkeypatch):
    """Frames that move by two pixels, and a flow network that returns that, or nothing."""
    frames = np.random.default_rng(0).integers(0, 256, (1, 2, 16, 20, 3), np.uint8)
    frames[0, 1, :, 2:] = frames[0, 0, :, :-2]
    seen = []

    def flow_of(x):
        def optical_flow(network, params, first, second):
            seen.append((network, params, first.shape, float(first.max())))
            forward = (first[0, :, :-2] == second[0, :, 2:]).all()
            flow = jnp.zeros((1, 16, 20, 2)).at[..., 0].set(jnp.where(forward, x, -x))
            return flow

        return optical_flow

    monkeypatch.setattr(fidelity.rife_weights, "load", lambda: ("network", {}))
    errors = []
    for x in (2.0, 0.0):
        monkeypatch.setattr(fidelity.rife, "optical_flow", flow_of(x))
        with jax.disable_jit():
            errors.append(warp_error(frames, flow="rife").mean)
    assert errors[0] == 0 and errors[1] > 0.05
    assert seen[0] == ("network", {}, (1, 16, 20, 3), 1.0)
