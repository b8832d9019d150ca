"""Samples of different sizes in rows of one length, as `VideoTransformer.packed` takes them."""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from einops import rearrange, repeat
from jaxtyping import Array, Float

from vdm_jax.models.blocks.positions import grid_positions
from vdm_jax.models.video_transformer import Packed, Patches, from_patches, to_patches

PADDING = -1  # the segment of tokens that belong to no sample


class Sample(NamedTuple):
    """A clip of any size, its noise level and its text."""

    z: Float[np.ndarray, "f h w c"]
    logsnr: float
    text: Float[np.ndarray, "l d"]


def num_tokens(shape: Sequence[int], patch: tuple[int, int, int]) -> int:
    """The tokens of a clip of `shape` (f, h, w, c). Raises ValueError where `patch` does not
    divide it."""
    if any(size % part for size, part in zip(shape[:3], patch, strict=True)):
        raise ValueError(f"a clip of {tuple(shape[:3])}: must be multiples of patch = {patch}")
    return int(np.prod([size // part for size, part in zip(shape[:3], patch, strict=True)]))


def pack(
    rows: Sequence[Sequence[Sample]], patch: tuple[int, int, int], length: int, text_length: int
) -> Packed:
    """Rows of `length` tokens and `text_length` tokens of text.

    Raises ValueError where a row's samples are longer.
    """
    samples = max(len(row) for row in rows)
    (*_, channels), (_, width) = rows[0][0].z.shape, rows[0][0].text.shape
    shape = (len(rows), length)
    packed = Packed(
        patches=np.zeros((*shape, *patch, channels), np.float32),
        positions=np.zeros((*shape, 3), np.float32),
        logsnr=np.zeros((len(rows), samples), np.float32),
        segments=np.full(shape, PADDING, np.int32),
        text=np.zeros((len(rows), text_length, width), np.float32),
        text_segments=np.full((len(rows), text_length), PADDING, np.int32),
    )
    for place, row in enumerate(rows):
        for name, allowed, used in (
            ("length", length, sum(num_tokens(sample.z.shape, patch) for sample in row)),
            ("text_length", text_length, sum(len(sample.text) for sample in row)),
        ):
            if used > allowed:
                raise ValueError(f"{name} = {allowed}: row {place} has {used} tokens")
        at = text_at = 0
        for number, sample in enumerate(row):
            i, j, k = patch
            order = "(f i) (h j) (w k) c -> (f h w) i j k c"
            patches = rearrange(sample.z, order, i=i, j=j, k=k)
            end, text_end = at + len(patches), text_at + len(sample.text)
            sizes = [n // p for n, p in zip(sample.z.shape, patch, strict=False)]
            packed.patches[place, at:end] = patches
            packed.positions[place, at:end] = grid_positions(*sizes)
            packed.segments[place, at:end] = number
            packed.logsnr[place, number] = sample.logsnr
            packed.text[place, text_at:text_end] = sample.text
            packed.text_segments[place, text_at:text_end] = number
            at, text_at = end, text_end
    return packed


class Clips(NamedTuple):
    """Clips of one size, n of which lie in each row: z, their noise levels and their texts."""

    z: Float[Array, "b n f h w c"]
    logsnr: Float[Array, "b n"]
    text: Float[Array, "b n l d"]


def pack_rows(sizes: Sequence[Clips], patch: tuple[int, int, int]) -> Packed:
    """Rows that each hold the clips of all `sizes` one behind the other. They have no padding.

    Every row is alike, so that one compiled program serves all batches.
    """
    rows = len(sizes[0].z)
    patches, texts, positions, segments, text_segments = [], [], [], [], []
    count = 0
    for clips in sizes:
        n = clips.z.shape[1]
        cut = to_patches(rearrange(clips.z, "b n ... -> (b n) ..."), patch)
        patches.append(rearrange(cut, "(b n) t ... -> b (n t) ...", n=n))
        texts.append(rearrange(clips.text, "b n l d -> b (n l) d"))
        places = grid_positions(*_grid(clips.z.shape[2:], patch))
        positions.append(np.tile(places, (n, 1)))
        numbers = np.arange(count, count + n, dtype=np.int32)
        segments.append(np.repeat(numbers, len(places)))
        text_segments.append(np.repeat(numbers, clips.text.shape[2]))
        count += n

    def every_row(parts: Sequence[np.ndarray]) -> Array:
        return repeat(jnp.asarray(np.concatenate(parts)), "... -> b ...", b=rows)

    return Packed(
        patches=jnp.concatenate(patches, axis=1),
        positions=every_row(positions),
        logsnr=jnp.concatenate([clips.logsnr for clips in sizes], axis=1),
        segments=every_row(segments),
        text=jnp.concatenate(texts, axis=1),
        text_segments=every_row(text_segments),
    )


def unpack_rows(
    outputs: Patches, sizes: Sequence[Clips], patch: tuple[int, int, int]
) -> list[Array]:
    """The clips, float (b, n, f, h, w, c), of each size, of the network's output for what
    `pack_rows` made of `sizes`."""
    found, at = [], 0
    for clips in sizes:
        n, grid = clips.z.shape[1], _grid(clips.z.shape[2:], patch)
        end = at + n * int(np.prod(grid))
        part = rearrange(outputs[:, at:end], "b (n t) ... -> (b n) t ...", n=n)
        found.append(rearrange(from_patches(part, grid), "(b n) ... -> b n ...", n=n))
        at = end
    return found


def _grid(shape: Sequence[int], patch: tuple[int, int, int]) -> list[int]:
    """Patches along frames, rows and columns. Raises ValueError as `num_tokens`."""
    num_tokens(shape, patch)
    return [size // part for size, part in zip(shape[:3], patch, strict=True)]
