"""Motion of latents between the frames of a clip: shifts, noise between two levels, and one
background for all frames (Text2Video-Zero, Khachatryan et al. 2023, sections 3.3.1 and 3.3.3)."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

PICTURE, LATENT = "picture", "latent"
UNITS = (PICTURE, LATENT)
_PICTURE = 512  # pixels of a side of the picture that the published motion is measured in

Clip = Float[Array, "b f h w c"]


def sources(
    size: int, offsets: Float[np.ndarray, "f"], unit: str = PICTURE
) -> Int[np.ndarray, "f {size}"]:
    """Along one axis, the place in a latent that each place of a shifted one is taken from.

    Content moves against the offset, by whole places, and what leaves the latent is reflected at
    its border (every place that is wanted lies between its own two borders, half a place outside of
    the first and of the last).

    Args:
      size: places of the latent.
      offsets: a number a frame.
      unit: picture: pixels of a picture of 512, whatever the size: a shift of d is one of d · size
        / 512 places, less half a pixel as in the published code, rounded. latent: places, rounded.

    Raises ValueError for another unit.
    """
    if unit not in UNITS:
        raise ValueError(f"unit = {unit!r}: allowed are {', '.join(UNITS)}")
    places = np.arange(size)
    offsets = np.asarray(offsets, np.float64)[:, None]
    if unit == LATENT:
        wanted = places + np.floor(offsets + 0.5)
    else:
        ratio = _PICTURE / size
        centres = np.clip((places + 0.5) * ratio - 0.5, 0, _PICTURE - 1)  # in the picture
        # The published code takes pixel d of the picture for d / 512 of its width, and not for
        # (d + 1/2) / 512.
        wanted = (centres + offsets) / ratio - 0.5
    return np.clip(np.round(_reflected(wanted, size)), 0, size - 1).astype(int)


def _reflected(places: Float[np.ndarray, "f n"], size: int) -> Float[np.ndarray, "f n"]:
    """Places between −1/2 and size − 1/2."""
    distance = np.abs(places + 0.5)
    flips, rest = np.divmod(distance, size)
    return np.where(flips % 2 == 0, rest, size - rest) - 0.5


def shift(
    z: Float[Array, "b _ h w c"] | Bool[Array, "b _ h w c"],
    rows: Int[np.ndarray, "f h"],
    columns: Int[np.ndarray, "f w"],
) -> Float[Array, "b f h w c"] | Bool[Array, "b f h w c"]:
    """Frames of which each is made of rows and columns of its own, see `sources`.

    z: with as many frames as `rows` and `columns`, or with one frame, from which all are made.
    """
    z = jnp.broadcast_to(z, (z.shape[0], len(rows), *z.shape[2:]))
    one = lambda z, rows, columns: z[:, rows][:, :, columns]  # noqa: E731
    return jax.vmap(one, in_axes=(1, 0, 0), out_axes=1)(z, jnp.asarray(rows), jnp.asarray(columns))


def add_noise_between(z: Clip, eps: Clip, share: float) -> Clip:
    """z at a higher noise level: √a z + √(1 − a) ε, where `share` is a, the ratio of both levels'
    α² (DDPM's forward process from one timestep to a later one)."""
    return np.sqrt(share) * z + np.sqrt(1 - share) * eps


def dilated(mask: Bool[Array, "b f h w 1"], side: int) -> Bool[Array, "b f h w 1"]:
    """True where a square of an odd side about the place holds a True."""
    window = (1, 1, side, side, 1)
    return jax.lax.reduce_window(mask, False, jax.lax.bitwise_or, window, (1,) * 5, "SAME")


def smooth_background(
    z: Clip,
    foreground: Bool[Array, "b f h w 1"],
    rows: Int[np.ndarray, "f h"],
    columns: Int[np.ndarray, "f w"],
    weight: float,
) -> Clip:
    """Frames whose background is mixed with the first frame's, shifted as the frame is (eq. 8).

    Background is what is foreground neither in the frame nor in the shifted first frame; there z is
    `weight` times the first frame's and 1 − `weight` times its own.
    """
    first = foreground[:, :1]
    background = ~foreground & ~shift(first, rows, columns)
    moved = shift(jnp.where(first, 0, z[:, :1]), rows, columns)
    return jnp.where(background, (1 - weight) * z + weight * moved, z)
