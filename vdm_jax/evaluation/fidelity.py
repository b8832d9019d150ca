"""Videos against reference videos, and against themselves: PSNR, SSIM, warp error, consistency."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Shaped, UInt8

from vdm_jax.models import rife
from vdm_jax.weights import rife as rife_weights

_PEAK = 255.0
_LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * _PEAK) ** 2, (0.03 * _PEAK) ** 2
_FLOWS = ("dis", "farneback", "rife")


class PerClip(NamedTuple):
    """A figure for each clip, float64 [n], and their mean."""

    mean: float
    clips: Float[np.ndarray, "n"]


def psnr(
    videos: UInt8[np.ndarray, "n f h w c"], references: UInt8[np.ndarray, "n f h w c"]
) -> PerClip:
    """Peak signal-to-noise ratio, 10 log10(255² / MSE), in dB.

    The error is over the pixels and channels of a frame; the figure of a clip is the mean over its
    frames. A frame that equals its reference has the figure of one value that is off by one, the
    highest of any other frame of its size: infinite, it would hide all other frames. Returns a
    `PerClip`. Raises ValueError for anything but uint8 [n, f, h, w, c] of 1 or 3 channels, and for
    unequal shapes.
    """
    values = np.empty(_check(videos, references))
    for video, reference, row in zip(videos, references, values, strict=True):
        error = video.astype(np.float64) - reference
        least = 1 / error[0].size
        mean_square = np.maximum(np.mean(error**2, (1, 2, 3)), least)
        row[:] = 10 * np.log10(_PEAK**2 / mean_square)
    return _per_clip(values)


def ssim(
    videos: UInt8[np.ndarray, "n f h w c"], references: UInt8[np.ndarray, "n f h w c"]
) -> PerClip:
    """Structural similarity on luma, from -1 to 1 (equal).

    Wang et al. 2004, equations 13 to 17: K1 = 0.01, K2 = 0.03, a Gaussian window of 11 x 11 and
    sigma 1.5, only where it lies wholly on the frame. Luma is 0.299 R + 0.587 G + 0.114 B (BT.601)
    of RGB, unrounded, and the channel itself of grey videos. The figure of a clip is the mean over
    its frames. Returns a `PerClip`. Raises ValueError as `psnr` does, and for frames smaller than
    the window.
    """
    values = np.empty(_check(videos, references))
    if min(np.shape(videos)[2:4]) < _WINDOW:
        raise ValueError(f"videos {list(np.shape(videos))}: h and w must be {_WINDOW} or more")
    for video, reference, row in zip(videos, references, values, strict=True):
        row[:] = _ssim_maps(_luma(video), _luma(reference)).mean((1, 2))
    return _per_clip(values)


class WarpError(NamedTuple):
    """The warp error, and how much of the videos it saw.

    Attributes:
      mean: over the clips that have a figure; NaN if none has.
      clips: float64 [n]; NaN for a clip without any pixel that could be compared.
      visible: the share of pixels compared, float64 [n]. An error means little where it is low:
        what moves most wildly is left out.
    """

    mean: float
    clips: Float[np.ndarray, "n"]
    visible: Float[np.ndarray, "n"]


def warp_error(
    videos: UInt8[np.ndarray, "n f h w c"],
    *,
    guides: UInt8[np.ndarray, "n f h w c"] | None = None,
    flow: str = "dis",
) -> WarpError:
    """How far frame t + 1, warped back to t along the motion, is from frame t.

    E_warp of Lai et al. 2018: the mean squared difference, brightness from 0 to 1, over the
    channels of all pixels of frame t that are not occluded, averaged over the pairs of frames. A
    pixel counts as occluded if the motion there and back disagrees or at a boundary of motion, by
    the thresholds of Ruder et al. 2016 that Lai et al. use, or if it leaves the frame. A pair
    without any other pixel is left out.

    The motion is that of `guides`, by default the videos themselves: OpenCV's dense inverse search
    (`dis`, Kroeger et al. 2016) or `farneback` (2003) on luma, or `rife`, the published network
    (`models.rife`), whose weights are fetched once, where Lai et al. have FlowNet2. Figures of
    different flows are not comparable.

    Raises ImportError without OpenCV, fetch.WeightsUnavailable without RIFE, and ValueError for
    another flow, fewer than two frames, frames below 12 x 12 pixels, and shapes as `psnr` does.
    """
    n, frames = _check(videos, videos if guides is None else guides, ("videos", "guides"))
    height, width = np.shape(videos)[2:4]
    if flow not in _FLOWS or frames < 2 or min(height, width) < 12:
        raise ValueError(
            f"flow {flow!r} of {frames} frames of {height} x {width}: must be one of "
            f"{', '.join(_FLOWS)}, of 2 frames or more of 12 x 12 or more"
        )
    motion = _flow_function(flow)
    errors, visible = np.full((n, frames - 1), np.nan), np.zeros((n, frames - 1))
    for i, video in enumerate(videos):
        guide = np.asarray(video if guides is None else guides[i])
        seen_by = guide if flow == "rife" else np.round(_luma(guide)).astype(np.uint8)
        pixels = video / _PEAK
        for t in range(frames - 1):
            forward = motion(seen_by[t], seen_by[t + 1])
            backward = motion(seen_by[t + 1], seen_by[t])
            seen = ~occluded(forward, backward)
            visible[i, t] = seen.mean()
            if seen.any():
                difference = warp(pixels[t + 1], forward) - pixels[t]
                errors[i, t] = np.mean(difference[seen] ** 2)
    counted = np.isfinite(errors)
    pairs = counted.sum(1)
    clips = np.where(pairs > 0, np.where(counted, errors, 0).sum(1) / np.maximum(pairs, 1), np.nan)
    mean = float(np.nanmean(clips)) if pairs.any() else float("nan")
    return WarpError(mean, clips, visible.mean(1))


def warp(
    image: Float[np.ndarray, "h w c"], flow: Float[np.ndarray, "h w 2"]
) -> Float[np.ndarray, "h w c"]:
    """The image at x + flow(x), by bilinear interpolation; beyond the edge its last pixel.

    The flow is in pixels, along the width and along the height. Returns float64. Raises ValueError
    where the shapes do not fit.
    """
    image, flow = np.asarray(image, np.float64), np.asarray(flow, np.float64)
    if image.ndim != 3 or flow.shape != (*image.shape[:2], 2):
        raise ValueError(
            f"image {list(image.shape)}, flow {list(flow.shape)}: must be [h, w, c], [h, w, 2]"
        )
    height, width = image.shape[:2]
    y = np.clip(np.arange(height)[:, None] + flow[..., 1], 0, height - 1)
    x = np.clip(np.arange(width) + flow[..., 0], 0, width - 1)
    top, left = np.floor(y).astype(int), np.floor(x).astype(int)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    down, across = (y - top)[..., None], (x - left)[..., None]
    upper = (1 - across) * image[top, left] + across * image[top, right]
    lower = (1 - across) * image[bottom, left] + across * image[bottom, right]
    return (1 - down) * upper + down * lower


def occluded(
    forward: Float[np.ndarray, "h w 2"], backward: Float[np.ndarray, "h w 2"]
) -> Bool[np.ndarray, "h w"]:
    """Which pixels of a frame cannot be followed into the next.

    With w the flow from the frame and w̃ the flow back, taken at x + w(x), those where

        |w + w̃|² > 0.01 (|w|² + |w̃|²) + 0.5        motion there and back disagree
        |∇w|² > 0.01 |w|² + 0.002                    a boundary of motion

    (Ruder et al. 2016, section on temporal consistency, after Sundaram et al. 2010; gradients are
    forward differences), and those that leave the frame. Flows in pixels. Raises ValueError where
    the shapes do not fit.
    """
    back = warp(backward, forward)
    forward = np.asarray(forward, np.float64)
    size = (forward**2).sum(-1)
    astray = ((forward + back) ** 2).sum(-1) > 0.01 * (size + (back**2).sum(-1)) + 0.5
    steepness = np.zeros(size.shape)
    steepness[:-1] += (np.diff(forward, axis=0) ** 2).sum(-1)
    steepness[:, :-1] += (np.diff(forward, axis=1) ** 2).sum(-1)
    height, width = size.shape
    y, x = np.arange(height)[:, None] + forward[..., 1], np.arange(width) + forward[..., 0]
    outside = (y < 0) | (y > height - 1) | (x < 0) | (x > width - 1)
    return astray | (steepness > 0.01 * size + 0.002) | outside


def frame_consistency(features: Shaped[np.ndarray, "n f d"]) -> PerClip:
    """The mean cosine similarity of consecutive frames' features, from -1 to 1.

    With CLIP's image features this is the frame consistency of Esser et al. 2023 (Gen-1). A still
    video has 1. Raises ValueError for other shapes, fewer than two frames, and features that are
    not finite or all zero.
    """
    features = np.asarray(features)
    if features.ndim != 3 or features.shape[1] < 2 or not features.size:
        raise ValueError(f"features {list(features.shape)}: must be [n, f, d] of 2 frames or more")
    features = features.astype(np.float64)
    norms = np.linalg.norm(features, axis=-1, keepdims=True)
    if not np.isfinite(norms).all() or not norms.all():
        raise ValueError(f"features {list(features.shape)}: must be finite and not all zero")
    unit = features / norms
    return _per_clip((unit[:, :-1] * unit[:, 1:]).sum(-1))


def _check(videos, others, names=("videos", "references")) -> tuple[int, int]:
    """The numbers of clips and frames of two sets of equal shape."""
    for name, x in zip(names, (videos, others), strict=True):
        x = np.asarray(x)
        if x.dtype != np.uint8 or x.ndim != 5 or not x.size or x.shape[-1] not in (1, 3):
            raise ValueError(
                f"{name} {x.dtype}{list(x.shape)}: must be uint8 [n, f, h, w, c], not empty, of 1 "
                "or 3 channels"
            )
    if np.shape(videos) != np.shape(others):
        shapes = f"{names[0]} {list(np.shape(videos))} and {names[1]} {list(np.shape(others))}"
        raise ValueError(f"{shapes}: must be of equal shapes")
    return np.shape(videos)[:2]


def _per_clip(frames: Float[np.ndarray, "n f"]) -> PerClip:
    clips = frames.mean(1)
    return PerClip(float(clips.mean()), clips)


def _luma(video: UInt8[np.ndarray, "f h w c"]) -> Float[np.ndarray, "f h w"]:
    return video[..., 0].astype(np.float64) if video.shape[-1] == 1 else video @ _LUMA


def _ssim_maps(a: Float[np.ndarray, "f h w"], b: Float[np.ndarray, "f h w"]) -> np.ndarray:
    mean_a, mean_b = _blur(a), _blur(b)
    variance_a, variance_b = _blur(a * a) - mean_a**2, _blur(b * b) - mean_b**2
    covariance = _blur(a * b) - mean_a * mean_b
    above = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
    return above / ((mean_a**2 + mean_b**2 + _C1) * (variance_a + variance_b + _C2))


def _blur(x: Float[np.ndarray, "f h w"]) -> np.ndarray:
    """The Gaussian window along rows and columns, without padding: [f, h - 10, w - 10]."""
    window = np.exp(-(((np.arange(_WINDOW) - _WINDOW // 2) / _SIGMA) ** 2) / 2)
    window /= window.sum()
    rows = x.shape[1] - _WINDOW + 1
    x = sum(weight * x[:, i : i + rows] for i, weight in enumerate(window))
    columns = x.shape[2] - _WINDOW + 1
    return sum(weight * x[:, :, i : i + columns] for i, weight in enumerate(window))


def _flow_function(name: str):
    """A function from two frames, uint8 [h, w] grey or for "rife" [h, w, c], to the flow, float32
    [h, w, 2]."""
    if name == "rife":
        return _rife_flow()
    try:
        import cv2
    except ImportError as error:
        raise ImportError("warp_error needs OpenCV: pip install 'vdm_jax[eval]'") from error
    if name == "dis":
        search = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
        return lambda a, b: search.calc(a, b, None)
    return lambda a, b: cv2.calcOpticalFlowFarneback(
        a,
        b,
        None,
        pyr_scale=0.5,
        levels=3,
        winsize=15,
        iterations=3,
        poly_n=5,
        poly_sigma=1.2,
        flags=0,
    )


def _rife_flow():
    network, params = rife_weights.load()
    run = jax.jit(lambda params, *frames: rife.optical_flow(network, params, *frames)[0])

    def flow(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        frames = (
            jnp.repeat(jnp.asarray(x, jnp.float32) / 255, 3 // x.shape[-1], -1)[None]
            for x in (a, b)
        )
        return np.asarray(run(params, *frames))

    return flow
