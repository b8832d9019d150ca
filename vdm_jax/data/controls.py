"""Videos that tell a ControlNet what to draw where: edges, depth, poses.

Each is uint8 `f h w 3`, as published ControlNets were trained: `canny` white lines on black, `hed`
soft edges, `depth` grey with near bright, `pose` drawn skeletons.
"""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import UInt8

from vdm_jax.weights import hed as hed_weights

Video = UInt8[np.ndarray, "f h w c"]
Control = UInt8[np.ndarray, "f h w 3"]
# Thresholds of the gradient at which lines begin and go on, of Zhang et al. 2023's demonstrations.
LOW, HIGH = 100, 200


def canny(video: Video, *, low: int = LOW, high: int = HIGH) -> Control:
    """Lines of one pixel, 0 or 255 (Canny 1986), by OpenCV.

    low, high: of the gradient, where a line goes on and where one begins. Raises ValueError for
    thresholds that are not 0 <= low <= high, and ImportError without OpenCV.
    """
    _check("canny", video, (3,))
    if not 0 <= low <= high:
        raise ValueError(f"canny: low = {low}, high = {high}: must be 0 <= low <= high")
    try:
        import cv2
    except ImportError as error:
        raise ImportError("canny needs OpenCV: pip install 'vdm_jax[eval]'") from error
    edges = np.stack([cv2.Canny(np.ascontiguousarray(frame), low, high) for frame in video])
    return _three(edges[..., None])


def hed(video: Video) -> Control:
    """Soft edges, 0 to 255, by the published network (`models.hed`). Its weights are fetched at
    first use. Raises as `weights.hed.load`."""
    _check("hed", video, (3,))
    network, params = hed_weights.load()
    run = jax.jit(lambda params, frame: network.apply({"params": params}, frame[None])[0])
    edges = np.stack([run(params, frame.astype(np.float32)) for frame in video])
    return _three(np.rint(255 * edges).astype(np.uint8))


def depth(video: Video) -> Control:
    """A depth video, near bright, of one or three channels: such as the true depth of `scenes`."""
    _check("depth", video, (1, 3))
    return _three(video)


def pose(video: Video) -> Control:
    """A video of drawn skeletons, unchanged."""
    _check("pose", video, (3,))
    return video


# By name. The first two are computed of a film, the others are films already.
KINDS: dict[str, Callable[..., Control]] = {
    "canny": canny,
    "hed": hed,
    "depth": depth,
    "pose": pose,
}
OF_PICTURES = ("canny", "hed")


def make(kind: str, video: Video) -> Control:
    """The control video of a kind. Raises ValueError for another kind, and as the kind does."""
    if kind not in KINDS:
        raise ValueError(f"control = {kind!r}: allowed are {', '.join(KINDS)}")
    return KINDS[kind](video)


def _check(kind: str, video: np.ndarray, channels: tuple[int, ...]) -> None:
    if video.dtype != np.uint8 or video.ndim != 4 or video.shape[-1] not in channels:
        allowed = " or ".join(map(str, channels))
        raise ValueError(
            f"{kind}: video {video.dtype}{list(video.shape)}: must be uint8 [f, h, w, c] of "
            f"{allowed} channels"
        )


def _three(video: Video) -> Control:
    return np.repeat(video, 3 // video.shape[-1], axis=-1)
