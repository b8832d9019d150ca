"""New frames between those of a video, by RIFE's optical flow: a model of motion, not of videos."""

from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from vdm_jax.models import rife
from vdm_jax.stage.space import to_uint8
from vdm_jax.weights.rife import Loaded

Videos = UInt8[np.ndarray, "n f h w 3"]


def interpolate(
    loaded: Loaded,
    videos: Videos,
    *,
    factor: int,
    track: Callable[[range], Iterable[int]] = iter,
) -> UInt8[np.ndarray, "n f2 h w 3"]:
    """Makes `factor` − 1 frames between each two: m frames become (m − 1) factor + 1.

    The given frames come back bit for bit. track: what the numbers of pairs of frames are read
    through, such as what shows progress. Raises ValueError for another type or shape, one frame,
    and a factor below 2.
    """
    if videos.dtype != np.uint8 or videos.ndim != 5 or videos.shape[-1] != 3:
        raise ValueError(
            f"videos {videos.dtype}{list(videos.shape)}: must be uint8 [n, f, h, w, 3]"
        )
    if videos.shape[1] < 2:
        raise ValueError("the video has one frame: there is nothing between frames")
    if factor < 2:
        raise ValueError(f"factor = {factor}: must be at least 2")
    times = jnp.arange(1, factor) / factor

    @jax.jit
    def new(params, first, second):
        first, second = (frame[None] / 255.0 for frame in (first, second))

        def one(time):
            return rife.between(loaded.network, params, first, second, time)[0]

        return to_uint8(2 * jax.lax.map(one, times) - 1)

    count, frames = videos.shape[:2]
    made = np.zeros((count, (frames - 1) * factor + 1, *videos.shape[2:]), np.uint8)
    made[:, ::factor] = videos
    for number in track(range(count * (frames - 1))):
        i, j = divmod(number, frames - 1)
        start = j * factor
        made[i, start + 1 : start + factor] = new(loaded.params, videos[i, j], videos[i, j + 1])
    return made
