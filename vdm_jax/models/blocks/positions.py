"""Positions of tokens on the three axes of a clip, frame, row and column: rotary (Su et al. 2021),
or sines that are added (Vaswani et al. 2017, section 3.5)."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Real

from vdm_jax.models import layers

_THETA = 10_000.0  # the longest wavelength over 2π, nearly


def axis_sizes(head_dim: int) -> tuple[int, int, int]:
    """The features of a head that turn with the frame, the row and the column: Wan 2.1's split."""
    side = 2 * (head_dim // 6)
    return head_dim - 2 * side, side, side


def rotation(
    positions: Real[Array, "*n 3"], head_dim: int
) -> tuple[Float[Array, "*n d"], Float[Array, "*n d"]]:
    """Cosines and sines of the angles of a head's pairs of features, half of `head_dim` each.

    positions: frame, row and column of a token. Any origin gives the same attention, which depends
    on differences alone.
    """
    angles = []
    for axis, size in enumerate(axis_sizes(head_dim)):
        frequencies = _THETA ** (-2.0 * np.arange(size // 2) / max(size, 1))
        position = positions[..., axis, None].astype(jnp.float32)
        angles.append(position * jnp.asarray(frequencies, jnp.float32))
    angles = jnp.concatenate(angles, axis=-1)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "b n heads d"], cosine: Float[Array, "#b n e"], sine: Float[Array, "#b n e"]
) -> Float[Array, "b n heads d"]:
    """`x` with its neighbouring features turned in pairs, computed in float32."""
    first, second = x[..., 0::2].astype(jnp.float32), x[..., 1::2].astype(jnp.float32)
    cosine, sine = cosine[:, :, None], sine[:, :, None]
    turned = (first * cosine - second * sine, first * sine + second * cosine)
    return jnp.stack(turned, axis=-1).reshape(x.shape).astype(x.dtype)


def grid_positions(
    frames: int, height: int, width: int, origin: Sequence[float | int] = (0, 0, 0)
) -> Float[np.ndarray, "n 3"]:
    """Frame, row and column of the tokens of a clip, in their order; `origin` is the first's."""
    axes = (range(size) for size in (frames, height, width))
    grid = np.stack(np.meshgrid(*(np.fromiter(a, np.float32) for a in axes), indexing="ij"), -1)
    return grid.reshape(-1, 3) + np.asarray(origin, np.float32)


def place_sines(positions: Real[Array, "*n 3"], width: int) -> Float[Array, "*n width"]:
    """Sines of the column, then of the row, half of the features each (Peebles & Xie 2022)."""
    column, row = positions[..., 2], positions[..., 1]
    halves = [layers.sinusoidal_embedding(axis, width // 2) for axis in (column, row)]
    return jnp.concatenate(halves, axis=-1)


def frame_sines(positions: Real[Array, "*n 3"], width: int) -> Float[Array, "*n width"]:
    """Sines of the frame."""
    return layers.sinusoidal_embedding(positions[..., 0], width)
