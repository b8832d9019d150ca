"""Which part of a video is known: the kinds of masks that models learn to complete videos from.

`draw` makes them for training (Lumiere, Bar-Tal et al. 2024, §4.2; the ends of a clip as in
Open-Sora 1.1, Zheng et al. 2024).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

KINDS = (
    *("none", "first_frame", "first_and_last", "inpaint", "outpaint", "cinemagraph"),
    *("key_frames", "beginning", "end", "ends", "first_two_frames"),
)
_SIDES = (0.25, 0.75)  # of a box, least and greatest, in shares of the frame's


def draw(
    key: Key[Array, ""], n: int, shape: tuple[int, int, int], kinds: Sequence[str]
) -> Float[Array, "n f h w 1"]:
    """n masks of videos of `shape` (f, h, w), 1 where the video is known, their kinds drawn evenly.

    none: nothing. first_frame, first_two_frames, first_and_last: whole frames. inpaint: all but a
    box, the same in all frames. outpaint: that box only. cinemagraph: all but the box, and the
    first frame whole.
    key_frames: every s-th frame, the first and the last among them, s drawn from the divisors above
    1 of f - 1. beginning, end: a drawn number of frames there, at least one, and not all
    (Make-A-Video, Singer et al. 2022, section 3.3). ends: as many at both.
    Raises ValueError for an unknown kind.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise ValueError(f"masks: {', '.join(unknown)}; allowed are {', '.join(KINDS)}")
    kind_key, box_key = jax.random.split(key)
    inside = boxes(box_key, n, shape[1:])
    frame = jnp.arange(shape[0])
    first, last = ((frame == at)[:, None, None] for at in (0, shape[0] - 1))
    beginning, both, every = _frames(jax.random.fold_in(key, 2), n, shape[0])
    of_kind = {
        "none": jnp.zeros_like(inside),
        "first_frame": first,
        "first_and_last": first | last,
        "inpaint": ~inside,
        "outpaint": inside,
        "cinemagraph": ~inside | first,
        "key_frames": every,
        "beginning": beginning,
        "end": beginning[:, ::-1],
        "ends": both | both[:, ::-1],
        "first_two_frames": (frame < 2)[:, None, None],
    }
    all_kinds = jnp.stack([jnp.broadcast_to(of_kind[kind], (n, *shape)) for kind in kinds])
    chosen = jax.random.randint(kind_key, (n,), 0, len(kinds))
    return all_kinds[chosen, jnp.arange(n)][..., None].astype(jnp.float32)


def _frames(key: Key[Array, ""], n: int, frames: int) -> tuple[Bool[Array, "n f 1 1"], ...]:
    """Known beginnings of clips: any, and at most half of a clip; and key frames."""
    run_key, skip_key = jax.random.split(key)
    number = jnp.arange(frames)[None, :, None, None]
    share = jax.random.uniform(run_key, (n, 1, 1, 1))
    run, half = (1 + jnp.floor(share * max(most, 1)) for most in (frames - 1, (frames - 1) // 2))
    skips = jnp.array([s for s in range(2, frames) if (frames - 1) % s == 0] or [1])
    skip = skips[jax.random.randint(skip_key, (n, 1, 1, 1), 0, len(skips))]
    return number < run, number < half, number % skip == 0


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
