"""How much a clip moves: optical flow of the samples, divided into camera and objects; stills;
shake.

The score is Stable Video Diffusion's (section 3.1): the mean length of Farnebäck's flow between
frames at 2 a second, in pictures whose shorter side has 16 pixels.
"""

import cv2
import numpy as np
from jaxtyping import Float32, Float64, UInt8

from vdm_jax.data.curation.clips import View
from vdm_jax.data.curation.film import grey

VERSION = 1
_SIDE = 16
# Pyramid scale, levels, window, iterations, neighbourhood, its deviation, flags.
_FARNEBACK = (0.5, 3, 15, 3, 5, 1.2, 0)
_STILL_SIDE = 64
_STILL = 1.0  # mean change between samples, of 255; coding alone changes less
_SMOOTHED = 0.5  # seconds over which the camera's path is averaged
_LEAST_SURE = 0.1  # of a phase correlation whose displacement is used
_SCALE = 0.25  # pixels of flow; a residual of this counts half in the camera's fit
_ROUNDS = 5


def score(view: View) -> dict[str, float]:
    """Scores of a clip's motion.

    Returns:
      motion: mean length of the flow between samples, in pixels of 16 a side.
      camera: of the part that an affine motion of the whole picture explains.
      objects: of the rest.
      still: share of the steps between samples in which nothing changes.
      shake: root mean square distance of the camera's path from its average over half a second,
        in frame heights.
      coded_motion: mean length of the codec's motion vectors a frame, in frame heights.
    """
    greys = [grey(sample) for sample in view.samples]
    small = [_shrunk(picture, _SIDE).astype(np.uint8) for picture in greys]
    flows = [flow(before, after) for before, after in zip(small, small[1:], strict=False)]
    cameras = [camera_motion(one) for one in flows]
    changes = [
        float(np.abs(after - before).mean())
        for before, after in _pairs([_shrunk(picture, _STILL_SIDE) for picture in greys])
    ]
    return {
        "motion": _mean([_length(one) for one in flows]),
        "camera": _mean([_length(one) for one in cameras]),
        "objects": _mean(
            [_length(one - camera) for one, camera in zip(flows, cameras, strict=True)]
        ),
        "still": _mean([float(change < _STILL) for change in changes], nothing=1.0),
        "shake": shake(view),
        "coded_motion": _mean(view.tracks["coded"][1:]),
    }


def flow(
    before: UInt8[np.ndarray, "h w"], after: UInt8[np.ndarray, "h w"]
) -> Float32[np.ndarray, "h w 2"]:
    """Farnebäck's optical flow, in pixels, right and down."""
    return cv2.calcOpticalFlowFarneback(before, after, None, *_FARNEBACK)


def camera_motion(flow: Float32[np.ndarray, "h w 2"]) -> Float64[np.ndarray, "h w 2"]:
    """The affine motion of the whole picture that most pixels of a flow follow.

    Least squares, in which pixels that move otherwise lose weight from round to round.
    """
    height, width = flow.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    places = np.stack([np.ones(rows.size), rows.ravel(), columns.ravel()], axis=1)
    wanted = flow.reshape(-1, 2).astype(np.float64)
    weights = np.ones(len(places))
    for _ in range(_ROUNDS):
        weighted = places * weights[:, None]
        fitted = places @ np.linalg.lstsq(weighted, wanted * weights[:, None], rcond=None)[0]
        distance = np.linalg.norm(wanted - fitted, axis=1)
        weights = 1 / (1 + (distance / _SCALE) ** 2)
    return fitted.reshape(flow.shape)


def shake(view: View) -> float:
    """Root mean square distance of the camera's path from its own average over half a second, in
    frame heights.

    Displacements that phase correlation is not sure of count as none: there, objects move.
    """
    sure = view.tracks["sure"][1:] >= _LEAST_SURE
    steps = np.stack([view.tracks["down"][1:], view.tracks["right"][1:]], axis=1)
    path = np.cumsum(steps * sure[:, None], axis=0)
    width = 2 * round(_SMOOTHED * view.fps / 2) + 1
    if len(path) < width + 2:
        return 0.0
    kernel = np.ones(width) / width
    smooth = np.stack([np.convolve(one, kernel, mode="valid") for one in path.T], axis=1)
    rest = path[width // 2 : width // 2 + len(smooth)] - smooth
    return float(np.sqrt((rest**2).sum(axis=1).mean()))


def _shrunk(picture: Float32[np.ndarray, "h w"], side: int) -> Float32[np.ndarray, "h2 w2"]:
    height, width = picture.shape
    scale = min(1.0, side / min(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _pairs(values: list) -> list[tuple]:
    return list(zip(values, values[1:], strict=False))


def _length(vectors: np.ndarray) -> float:
    return float(np.linalg.norm(vectors, axis=-1).mean())


def _mean(values, nothing: float = 0.0) -> float:
    return float(np.mean(values)) if len(values) else nothing
