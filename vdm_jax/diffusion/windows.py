"""A video larger than a network takes at once: windows over one axis, their predictions joined.

`windowed` maps a Denoiser to a Denoiser; nested, it cuts several axes. With the weights "core"
every element is predicted by the window in which it lies deepest: a fully convolutional network
whose reach is at most half of the overlap then predicts exactly what it does whole. With "uniform"
or "ramp" overlapping predictions are averaged at every step (MultiDiffusion, Bar-Tal et al. 2023,
eq. 5; Lumiere's temporal windows, Bar-Tal et al. 2024, §3.2). With "fade" a window's weight falls
linearly over each overlap, from 1 at its first element, while the next one's rises from 0. "inner"
is such a fade in the middle of each overlap: the elements nearest to a window's own ends, where its
prediction lacks most neighbours, do not count.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm_jax.diffusion.predictions import Prediction
from vdm_jax.diffusion.process import Denoiser

WEIGHTS = ("core", "uniform", "ramp", "fade", "inner")


def window_starts(length: int, size: int, overlap: int, multiple: int = 1) -> list[int]:
    """Where windows of `size` begin that cover `length`, each over the one before by `overlap`.

    The last one ends at the end, and so may overlap more. Raises ValueError where a window would
    not begin at a multiple of `multiple`, as a network with strides needs.
    """
    if not 0 <= overlap < size:
        raise ValueError(
            f"overlap = {overlap}: must be from 0 to the window's size - 1, {size - 1}"
        )
    if size >= length:
        return [0]
    starts = [*range(0, length - size, size - overlap), length - size]
    if any(start % multiple for start in starts):
        raise ValueError(
            f"windows of {size} with overlap {overlap} over {length} begin at {starts}: all must "
            f"be multiples of {multiple}, so that the network's strides fall alike"
        )
    return starts


def window_weights(
    length: int, size: int, starts: Sequence[int], weights: str
) -> Float[np.ndarray, "windows size"]:
    """How much each window's prediction counts at each of its places; sums to 1 at each element."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights = {weights!r}: allowed are {', '.join(WEIGHTS)}")
    place = np.arange(size)
    whole = np.zeros((len(starts), length), np.float32)
    for number, start in enumerate(starts):
        inside = np.ones(size)
        if weights == "ramp":
            inside = np.minimum(place + 1, size - place)
        elif weights == "core":
            low = 0 if number == 0 else (starts[number - 1] + size - start) // 2
            high = size if number == len(starts) - 1 else (starts[number + 1] - start + size) // 2
            inside = ((low <= place) & (place < high)).astype(float)
        elif weights == "fade":
            inside = _fade(place, size, starts, number)
        elif weights == "inner":
            before, after = _overlaps(size, starts, number)
            inside[:before] = _rise(before)
            inside[size - after :] = np.minimum(inside[size - after :], _rise(after)[::-1])
        whole[number, start : start + size] = inside
    whole /= whole.sum(0)
    return np.stack([row[start : start + size] for row, start in zip(whole, starts, strict=True)])


def _fade(place: np.ndarray, size: int, starts: Sequence[int], number: int) -> np.ndarray:
    """The weights "fade" of one window."""
    inside = np.ones(size)
    before, after = _overlaps(size, starts, number)
    if before:
        inside = np.minimum(inside, place / before)
    if after:
        inside = np.minimum(inside, (size - place) / after)
    return inside


def _overlaps(size: int, starts: Sequence[int], number: int) -> tuple[int, int]:
    """How many elements a window shares with the one before, and with the next."""
    before = starts[number - 1] + size - starts[number] if number > 0 else 0
    after = starts[number] + size - starts[number + 1] if number < len(starts) - 1 else 0
    return before, after


def _rise(overlap: int) -> Float[np.ndarray, "{overlap}"]:
    """From 0 to 1 over an overlap; flat over a quarter of it at each end, at least one element."""
    flat = 0 if overlap < 2 else max(overlap // 4, 1)
    places = np.arange(overlap) + 1 - flat
    return np.clip(places / (overlap + 1 - 2 * flat), 0.0, 1.0)


def windowed(
    denoiser: Denoiser,
    *,
    axis: int,
    size: int,
    overlap: int,
    weights: str = "core",
    like: Sequence[str] = (),
    multiple: int = 1,
    together: bool = False,
) -> Denoiser:
    """Evaluates a Denoiser on overlapping windows of an axis and joins what it says.

    x̂ and ε̂ are affine in each other for one z, so joining both by the same weights keeps
    z = α x̂ + σ ε̂.

    Args:
      axis: of z, 1 (frames), 2 (height) or 3 (width).
      size, overlap, multiple: see `window_starts`. A video no longer than `size` goes through as
        it is.
      weights: one of `WEIGHTS`.
      like: names of the conditions that are cut as z is; the others go to every window.
      together: all windows as one batch, instead of one after the other in the memory of one.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights = {weights!r}: allowed are {', '.join(WEIGHTS)}")

    def cut(array: Array, start: Any) -> Array:
        return jax.lax.dynamic_slice_in_dim(array, start, size, axis)

    def denoise(z: Float[Array, "b f h w c"], logsnr: Float[Array, "b"], cond: Any) -> Prediction:
        length = z.shape[axis]
        if length <= size:
            return denoiser(z, logsnr, cond)
        starts = window_starts(length, size, overlap, multiple)
        shape = [1] * z.ndim
        shape[axis] = size
        share = jnp.asarray(window_weights(length, size, starts, weights))
        share = share.reshape(len(starts), *shape)

        def part(start: Any) -> tuple[Array, dict]:
            cuts = {name: cut(value, start) for name, value in cond.items() if name in like}
            return cut(z, start), {**cond, **cuts}

        def add(total: tuple[Array, Array], start: Any, said: tuple[Array, Array], weight: Array):
            return tuple(
                jax.lax.dynamic_update_slice_in_dim(
                    whole, cut(whole, start) + weight * new, start, axis
                )
                for whole, new in zip(total, said, strict=True)
            )

        total = (jnp.zeros_like(z), jnp.zeros_like(z))
        if together:
            parts = [part(start) for start in starts]
            batch = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
            prediction = denoiser(batch[0], jnp.tile(logsnr, len(starts)), batch[1])
            said = [jnp.split(field, len(starts)) for field in (prediction.x, prediction.eps)]
            for number, start in enumerate(starts):
                total = add(total, start, (said[0][number], said[1][number]), share[number])
        else:

            def body(total, inputs):
                start, weight = inputs
                piece, told = part(start)
                prediction = denoiser(piece, logsnr, told)
                return add(total, start, (prediction.x, prediction.eps), weight), None

            total, _ = jax.lax.scan(body, total, (jnp.array(starts), share))
        x, eps = total
        return Prediction(z=z, logsnr=logsnr, x=x, eps=eps)

    return denoise
