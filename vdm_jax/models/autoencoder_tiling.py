"""Encoding and decoding in bounded memory: a few frames at a time, tiles, chunks of clips.

All are functions of a function, such as an autoencoder's `decode` with its parameters bound, of
videos `b f h w c` or images `n h w c`. Its result may be any tree of such arrays.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jaxtyping import Array, Float, PyTree

from vdm_jax.diffusion import windows

Function = Callable[[Array], PyTree]


def in_slices(function: Function, video: Float[Array, "b f *rest"], at_once: int) -> PyTree:
    """`function(video)` for a function of each frame alone, `at_once` frames at a time.

    The batch stays whole. Slices have equal sizes; the last frame is repeated to fill the last one.
    Raises ValueError where `at_once` is below 1.
    """
    if at_once < 1:
        raise ValueError(f"at_once = {at_once}: must be at least 1")
    frames = video.shape[1]
    slices = -(-frames // at_once)
    if slices == 1:
        return function(video)
    size = -(-frames // slices)
    missing = [(0, 0), (0, slices * size - frames)] + [(0, 0)] * (video.ndim - 2)
    filled = jnp.pad(video, missing, mode="edge")
    parts = jax.lax.map(function, rearrange(filled, "b (k s) ... -> k b s ...", k=slices))
    return jax.tree.map(lambda leaf: rearrange(leaf, "k b s ... -> b (k s) ...")[:, :frames], parts)


def tiled(
    function: Function,
    images: Float[Array, "*n h w c"],
    *,
    tile: int,
    overlap: int,
    shrinks: int = 1,
    grows: int = 1,
) -> PyTree:
    """`function(images)` of square tiles that overlap, one after the other in the memory of one.

    Where tiles overlap their results fade linearly from one to the next. Far from the borders of
    tiles a convolutional function returns what it returns for the whole; attention and statistics
    over a frame see their tile alone.

    Args:
      function: with a result `shrinks` times smaller (an encoder), or `grows` times larger (a
        decoder) in height and width.
      images: any leading axes; height and width are multiples of `shrinks`.
      tile: height and width of a tile, in latents. A smaller axis is not cut.
      overlap: of neighbouring tiles, in latents.

    Raises ValueError where `overlap` is negative or not below `tile`, and where `shrinks` does not
    divide height and width.
    """
    if any(length % shrinks for length in images.shape[-3:-1]):
        raise ValueError(
            f"height and width = {images.shape[-3:-1]}: must be multiples of {shrinks}"
        )
    first, cuts = images.ndim - 3, []
    for axis in (first, first + 1):
        length = images.shape[axis] // shrinks
        size = min(tile, length)
        starts = windows.window_starts(length, tile, overlap)
        cuts.append(_cut(axis, size, starts, length, "fade", shrinks, grows))
    return _assembled(function, images, cuts)


def in_chunks(
    function: Function,
    video: Float[Array, "b f *rest"],
    *,
    at_once: int,
    overlap: int,
    reach: int,
) -> PyTree:
    """`function(video)` for a function that mixes frames, `at_once` frames at a time.

    Neighbouring chunks share `overlap` frames. If that is at least twice `reach`, every frame is
    taken from a chunk that has all frames on which it depends, and the result is that of the whole.
    If it is less, the results fade linearly from one chunk to the next, in the middle of what they
    share: a chunk's first and last frames lack their neighbours.

    Args:
      function: with as many frames in its result.
      reach: how many frames away a frame of the result may depend on a frame of the video. A
        statistic over all frames, such as that of a normalisation, reaches further: then no overlap
        is exact.

    Raises ValueError where `overlap` is negative or not below `at_once`.
    """
    length = video.shape[1]
    starts = windows.window_starts(length, at_once, overlap)
    weights = "core" if overlap >= 2 * reach else "inner"
    cut = _cut(1, min(at_once, length), starts, length, weights)
    return _assembled(function, video, [cut])


class _Cut(NamedTuple):
    """Windows of one axis: of the function's argument, and of its result.

    Attributes:
      axis, size: of the argument.
      starts, places: where the windows begin in the argument and in the result.
      length: of the result's axis.
      weights: of the result's windows.
    """

    axis: int
    size: int
    starts: Sequence[int]
    places: Sequence[int]
    length: int
    weights: Float[np.ndarray, "windows size"]


def _cut(
    axis: int,
    size: int,
    starts: Sequence[int],
    length: int,
    weights: str,
    shrinks: int = 1,
    grows: int = 1,
) -> _Cut:
    """`size`, `starts` and `length` count latents."""
    places = [grows * start for start in starts]
    return _Cut(
        axis,
        shrinks * size,
        [shrinks * start for start in starts],
        places,
        grows * length,
        windows.window_weights(grows * length, grows * size, places, weights),
    )


def _assembled(function: Function, whole: Array, cuts: Sequence[_Cut]) -> PyTree:
    """The weighted sum of the results of all windows."""
    if all(len(cut.starts) == 1 for cut in cuts):
        return function(whole)
    shape = list(whole.shape)
    for cut in cuts:
        shape[cut.axis] = cut.size
    results = jax.eval_shape(function, jax.ShapeDtypeStruct(shape, whole.dtype))

    def empty(result: jax.ShapeDtypeStruct) -> Array:
        sizes = list(result.shape)
        for cut in cuts:
            sizes[cut.axis] = cut.length
        return jnp.zeros(sizes, result.dtype)

    def add(totals: PyTree, numbers: Any) -> tuple[PyTree, None]:
        argument = whole
        for cut, number in zip(cuts, numbers, strict=True):
            start = jnp.asarray(cut.starts)[number]
            argument = jax.lax.dynamic_slice_in_dim(argument, start, cut.size, cut.axis)
        return jax.tree.map(
            lambda total, result: _added(total, result, cuts, numbers), totals, function(argument)
        ), None

    counts = [range(len(cut.starts)) for cut in cuts]
    numbers = np.array(list(itertools.product(*counts)), np.int32)
    return jax.lax.scan(add, jax.tree.map(empty, results), numbers)[0]


def _added(total: Array, result: Array, cuts: Sequence[_Cut], numbers: Array) -> Array:
    """`total` with one window's weighted result added in its place."""
    places, sizes = [jnp.int32(0)] * total.ndim, list(result.shape)
    for cut, number in zip(cuts, numbers, strict=True):
        places[cut.axis] = jnp.asarray(cut.places, jnp.int32)[number]
        weights = jnp.asarray(cut.weights, result.dtype)[number]
        along = [1] * total.ndim
        along[cut.axis] = len(weights)
        result = result * weights.reshape(along)
    before = jax.lax.dynamic_slice(total, places, sizes)
    return jax.lax.dynamic_update_slice(total, before + result, places)
