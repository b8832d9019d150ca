"""Clips that show the same, found by the hashes of their pictures.

A copy may be coded anew, scaled, mirrored, and begin a little earlier or later. So clips are
compared by how many pictures of the shorter one the other one has, wherever they are.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import UInt64

from vdm_jax.data.curation.settings import Duplicates
from vdm_jax.data.curation.tracks import MIRROR

_BAND = 16  # bits; two pictures are compared where one of their four bands is equal
_COMMON = 200  # clips that share a band; more share a picture that says nothing


def find(hashes: Sequence[Sequence[int]], settings: Duplicates) -> list[int | None]:
    """For each clip the first clip that it is a copy of; None where it is the first.

    hashes: of each clip's pictures (`tracks.picture_hash`), in the clips' order.
    """
    arrays = [np.array(one, np.uint64) for one in hashes]
    copies: list[int | None] = [None] * len(arrays)
    for later, earlier in _candidates(arrays):
        if copies[later] is not None:
            continue
        if alike(arrays[later], arrays[earlier], settings.distance) >= settings.share:
            first = copies[earlier]
            copies[later] = earlier if first is None else first
    return copies


def alike(one: UInt64[np.ndarray, "n"], other: UInt64[np.ndarray, "m"], distance: int) -> float:
    """The share of the shorter clip's pictures that the other clip has too, mirrored or not."""
    if not len(one) or not len(other):
        return 0.0
    short, long = (one, other) if len(one) <= len(other) else (other, one)
    shares = []
    for turned in (short, short ^ np.uint64(MIRROR)):
        bits = np.bitwise_count(turned[:, None] ^ long[None])
        shares.append(float((bits.min(axis=1) <= distance).mean()))
    return max(shares)


def _candidates(arrays: Sequence[UInt64[np.ndarray, "_"]]) -> Iterator[tuple[int, int]]:
    """Pairs (later clip, earlier clip) that share a band of a picture, in order."""
    if not arrays:
        return
    values = np.concatenate(arrays)
    owners = np.repeat(np.arange(len(arrays)), [len(one) for one in arrays])
    pairs: set[tuple[int, int]] = set()
    for band in range(64 // _BAND):
        plain = _bands(values, band)
        turned = _bands(values ^ np.uint64(MIRROR), band)
        stored = np.unique(np.stack([plain, owners]), axis=1)
        asked = np.unique(np.stack([np.append(plain, turned), np.append(owners, owners)]), axis=1)
        starts = np.searchsorted(stored[0], asked[0], side="left")
        ends = np.searchsorted(stored[0], asked[0], side="right")
        for start, end, owner in zip(starts, ends, asked[1], strict=True):
            if end - start <= _COMMON:
                pairs |= {
                    (max(owner, other), min(owner, other))
                    for other in stored[1, start:end].tolist()
                    if other != owner
                }
    yield from sorted(pairs)


def _bands(values: UInt64[np.ndarray, "n"], band: int) -> np.ndarray:
    return ((values >> np.uint64(band * _BAND)) & np.uint64((1 << _BAND) - 1)).astype(np.int64)
