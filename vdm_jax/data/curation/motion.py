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
_CAMERA_SIDE = 64  # at 16, the flow is too smooth to tell objects from the picture
# Pyramid scale, levels, window, iterations, neighbourhood, its deviation, flags.
_FARNEBACK = (0.5, 3, 15, 3, 5, 1.2, 0)
# A pixel changes if a colour changes by more, of 255; coding changes less. Nothing moves where no
# larger share of the pixels changes.
_CHANGED, _STILL = 16, 0.005
_SMOOTHED = 0.5  # seconds over which the camera's path is averaged
_LEAST_SURE = 0.1  # of a phase correlation whose displacement is used
_SCALE = 0.1  # pixels of 16 a side; a residual of this counts half in the camera's fit
_ROUNDS = 5


def score(view: View) -> dict[str, float]:
    """Scores of a clip's motion, by name.

    - motion: mean length of the flow between samples, in pixels of 16 a side.
    - camera: the same of the part that an affine motion of the whole picture explains, of flow in
      pictures whose shorter side has 64 pixels.
    - objects: of the rest of that flow.
    - still: share of the steps between samples in which nothing changes.
    - shake: see `shake`.
    - coded_motion: mean length of the codec's motion vectors a frame, in frame heights.
    """
    greys = [grey(sample) for sample in view.samples]
    flows = _flows(greys, _SIDE)
    large = [one * (_SIDE / _CAMERA_SIDE) for one in _flows(greys, _CAMERA_SIDE)]
    cameras = [camera_motion(one) for one in large]
    small = [_shrunk(sample, _CAMERA_SIDE).astype(np.int16) for sample in view.samples]
    changes = [np.abs(after - before).max(-1) for before, after in _pairs(small)]
    return {
        "motion": _mean([_length(one) for one in flows]),
        "camera": _mean([_length(one) for one in cameras]),
        "objects": _mean(
            [_length(one - camera) for one, camera in zip(large, cameras, strict=True)]
        ),
        "still": _mean([(one > _CHANGED).mean() < _STILL for one in changes], nothing=1.0),
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
    places = np.stack([np.ones(rows.size), rows.ravel() / height, columns.ravel() / width], axis=1)
    wanted = flow.reshape(-1, 2).astype(np.float64)
    weights = np.ones(len(places))
    for _ in range(_ROUNDS):
        weighted = places * weights[:, None]
        fitted = places @ np.linalg.solve(weighted.T @ places, weighted.T @ wanted)
        distance = np.linalg.norm(wanted - fitted, axis=1)
        weights = 1 / (1 + (distance / _SCALE) ** 2)
    return fitted.reshape(flow.shape)


def shake(view: View) -> float:
    """Median distance of the camera's path from its own average over half a second, in frame
    heights.

    The median passes over a single jolt or a fast pan. Displacements that phase correlation is not
    sure of count as none: there, objects move.
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
    return float(np.median(np.linalg.norm(rest, axis=1)))


def _flows(
    greys: list[Float32[np.ndarray, "h w"]], side: int
) -> list[Float32[np.ndarray, "h2 w2 2"]]:
    small = [np.rint(_shrunk(picture, side)).astype(np.uint8) for picture in greys]
    return [flow(before, after) for before, after in _pairs(small)]


def _shrunk(picture: np.ndarray, side: int) -> np.ndarray:
    """A picture `h w` or `h w c` with a shorter side of at most `side` pixels."""
    height, width = picture.shape[:2]
    scale = min(1.0, side / min(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _pairs(values: list) -> list[tuple]:
    return list(zip(values, values[1:], strict=False))


def _length(vectors: np.ndarray) -> float:
    return float(np.linalg.norm(vectors, axis=-1).mean())


def _mean(values, nothing: float = 0.0) -> float:
    return float(np.mean(values)) if len(values) else nothing
