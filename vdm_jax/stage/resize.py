"""How a cascade makes a coarse video of a fine one, and a condition of a coarse one."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from einops import rearrange, reduce
from jaxtyping import Array, Float

FILLS = ("repeat", "blank", "blend")


def coarsen(video: Float[Array, "b f h w c"], shape: Sequence[int]) -> Float[Array, "b f2 h2 w2 c"]:
    """Averages over blocks of pixels and takes the first of every few frames.

    shape: (frames, height, width) of the result, each a divisor of the video's. Raises ValueError.
    """
    factors = ratios(video.shape[1:4], shape)
    return reduce(
        video[:, :: factors[0]],
        "b f (h p) (w q) c -> b f h w c",
        "mean",
        p=factors[1],
        q=factors[2],
    )


def refine(
    video: Float[Array, "b f h w c"], shape: Sequence[int], fill: str = "repeat"
) -> Float[Array, "b f2 h2 w2 c"]:
    """Bilinear over space; over time each frame repeated, or between two frames blank (zeros) ones
    or ones blended of both (the last frame is repeated).

    shape: (frames, height, width) of the result, each a multiple of the video's.
    """
    frames, height, width = shape
    factor = ratios(shape, video.shape[1:4])[0]
    if fill not in FILLS:
        raise ValueError(f"fill = {fill!r}: allowed are {', '.join(FILLS)}")
    if (height, width) != video.shape[2:4]:
        size = (*video.shape[:2], height, width, video.shape[-1])
        video = jax.image.resize(video, size, "bilinear")
    if factor == 1:
        return video
    if fill == "repeat":
        return jnp.repeat(video, factor, axis=1)
    if fill == "blend":
        following = jnp.concatenate([video[:, 1:], video[:, -1:]], axis=1)
        share = jnp.arange(factor, dtype=video.dtype)[:, None, None, None] / factor
        filled = (1 - share) * video[:, :, None] + share * following[:, :, None]
    else:
        blank = jnp.zeros((*video.shape[:2], factor - 1, *video.shape[2:]), video.dtype)
        filled = jnp.concatenate([video[:, :, None], blank], axis=2)
    return rearrange(filled, "b f k h w c -> b (f k) h w c")


def ratios(fine: Sequence[int], coarse: Sequence[int]) -> tuple[int, int, int]:
    """How many times the frames, height and width of `fine` are those of `coarse`.

    Raises ValueError where one is no whole number.
    """
    fine, coarse = tuple(fine)[:3], tuple(coarse)[:3]
    if any(f % c for f, c in zip(fine, coarse, strict=True)):
        raise ValueError(f"(frames, height, width) = {fine} must be whole multiples of {coarse}")
    return tuple(f // c for f, c in zip(fine, coarse, strict=True))
