"""Small films for tests of curation: textured scenes that move, another one for each seed."""

import functools
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from tests.data import video_files
from vdm_jax.data.curation.engine import Work

HEIGHT, WIDTH, FPS = 64, 96, 24
_MARGIN = 64  # pixels of a texture beyond the picture, into which the camera may move


@functools.cache
def texture(seed: int) -> UInt8[np.ndarray, "h w 3"]:
    """Coloured noise of several scales, larger than a picture."""
    rng = np.random.default_rng(seed)
    size = HEIGHT + 2 * _MARGIN, WIDTH + 2 * _MARGIN
    total = np.zeros((*size, 3), np.float32)
    for cells, weight in ((4, 1.5), (12, 1.5), (40, 0.8), (100, 0.4)):
        noise = rng.uniform(-1, 1, (cells, cells, 3)).astype(np.float32)
        total += weight * cv2.resize(noise, size[::-1], interpolation=cv2.INTER_CUBIC)
    low, high = rng.uniform(0, 90, 3), rng.uniform(150, 255, 3)
    share = (total - total.min((0, 1))) / np.ptp(total, axis=(0, 1))
    return np.rint(low + share * (high - low)).astype(np.uint8)


def scene(
    seed: int,
    frames: int,
    *,
    pan: tuple[float, float] = (0.0, 0.4),
    disc: float = 0.0,
    path: np.ndarray | None = None,
) -> UInt8[np.ndarray, "f h w 3"]:
    """Frames of a texture.

    pan: pixels down and right a frame. disc: pixels right a frame of a disc. path: [frames, 2],
    pixels by which each frame is moved, in the place of the pan.
    """
    steps = np.arange(frames)[:, None]
    path = steps * np.array(pan) - frames * np.array(pan) / 2 if path is None else path
    pictures = []
    for number, (down, right) in enumerate(path):
        shift = np.float32([[1, 0, right - _MARGIN], [0, 1, down - _MARGIN]])
        picture = cv2.warpAffine(texture(seed), shift, (WIDTH, HEIGHT))
        if disc:
            centre = (round(20 + disc * number) % WIDTH, HEIGHT // 2)
            cv2.circle(picture, centre, 12, (255, 40, 40), -1)
        pictures.append(picture)
    return np.stack(pictures)


def dissolve(before: np.ndarray, after: np.ndarray, frames: int) -> UInt8[np.ndarray, "f h w 3"]:
    """Two scenes joined; the last frames of the one are mixed with the first of the other."""
    share = (np.arange(1, frames + 1) / (frames + 1))[:, None, None, None]
    mixed = (1 - share) * before[-frames:] + share * after[:frames]
    return np.concatenate([before[:-frames], np.rint(mixed).astype(np.uint8), after[frames:]])


def write(path: Path, pictures: UInt8[np.ndarray, "f h w 3"], gop: int = 24, **changes) -> Path:
    video = video_files.Video(
        frames=len(pictures),
        height=pictures.shape[1],
        width=pictures.shape[2],
        fps=FPS,
        gop=gop,
        **changes,
    )
    return video_files.write(path, video, pictures)


def serially(function, died, work: Work, keys):
    """An engine (`engine.Run`) of this process."""
    for key in keys:
        function(work, key)
        yield key
