"""Which part of a video is known: the kinds of masks that models learn to complete videos from.

`draw` makes them for training (Lumiere, Bar-Tal et al. 2024, §4.2; the ends of a clip as in
Open-Sora 1.1, Zheng et al. 2024).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

KINDS = ("none", "first_frame", "first_and_last", "inpaint", "outpaint", "cinemagraph")
KINDS += ("beginning", "end", "ends")
_SIDES = (0.25, 0.75)  # of a box, least and greatest, in shares of the frame's


def draw(
    key: Key[Array, ""], n: int, shape: tuple[int, int, int], kinds: Sequence[str]
) -> Float[Array, "n f h w 1"]:
    """n masks of videos of `shape` (f, h, w), 1 where the video is known, their kinds drawn evenly.

    none: nothing. first_frame, first_and_last: whole frames. inpaint: all but a box, the same in
    all frames. outpaint: that box only. cinemagraph: all but the box, and the first frame whole.
    Raises ValueError for an unknown kind.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"masks: {', '.join(unknown)}; allowed are {', '.join(KINDS)}")
    kind_key, box_key = jax.random.split(key)
    inside = boxes(box_key, n, shape[1:])
    frame, frames = jnp.arange(shape[0]), shape[0]
    share = jax.random.uniform(jax.random.fold_in(key, 2), (n, 1))
    count = 1 + jnp.floor(share * max(frames - 1, 1))
    of_each = 1 + jnp.floor(share * max((frames - 1) // 2, 1))
    beginning, end, ends = (
        along[:, :, None, None]
        for along in (
            frame < count,
            frame >= frames - count,
            (frame < of_each) | (frame >= frames - of_each),
        )
    )
    first, last = ((frame == at)[:, None, None] for at in (0, shape[0] - 1))
    of_kind = {
        "none": jnp.zeros_like(inside),
        "first_frame": first,
        "first_and_last": first | last,
        "inpaint": ~inside,
        "outpaint": inside,
        "cinemagraph": ~inside | first,
        "beginning": beginning,
        "end": end,
        "ends": ends,
    }
    all_kinds = jnp.stack([jnp.broadcast_to(of_kind[kind], (n, *shape)) for kind in kinds])
    chosen = jax.random.randint(kind_key, (n,), 0, len(kinds))
    return all_kinds[chosen, jnp.arange(n)][..., None].astype(jnp.float32)


def boxes(key: Key[Array, ""], n: int, size: tuple[int, int]) -> Bool[Array, "n 1 h w"]:
    """Random boxes in frames of `size` (h, w), True inside."""
    along = []
    for length, axis_key in zip(size, jax.random.split(key), strict=True):
        side_key, start_key = jax.random.split(axis_key)
        side = jax.random.uniform(side_key, (n, 1), minval=_SIDES[0], maxval=_SIDES[1]) * length
        start = jax.random.uniform(start_key, (n, 1)) * (length - side)
        place = jnp.arange(length) + 0.5
        along.append((start <= place) & (place < start + side))
    rows, columns = along
    return (rows[:, :, None] & columns[:, None, :])[:, None]
