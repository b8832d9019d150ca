"""OpenEXR images, as renderers write depth: the channels of a file of scan lines, float32.

Read are files of one part without compression, or with RLE or ZIP, which hold every value exactly.
"""

import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Shaped, UInt8

_MAGIC = 20000630
_OTHER_KINDS = {0x200: "tiles", 0x800: "deep pixels", 0x1000: "several parts"}
_DTYPES = (np.dtype("<u4"), np.dtype("<f2"), np.dtype("<f4"))
# By their numbers in the file; those that are read, with the rows of a block.
_COMPRESSIONS = ("none", "RLE", "ZIPS", "ZIP", "PIZ", "PXR24", "B44", "B44A", "DWAA", "DWAB")
_ROWS = {"none": 1, "RLE": 1, "ZIPS": 1, "ZIP": 16}
_LARGEST = 2**15  # rows or columns, beyond which a header is taken as broken


class _Header(NamedTuple):
    """channels: names with their types, in the order of the file; begin: of what follows."""

    channels: dict[str, np.dtype]
    compression: str
    height: int
    width: int
    first_row: int
    begin: int


def read(path: str | Path) -> dict[str, Float[np.ndarray, "h w"]]:
    """The channels of an OpenEXR file by name, float32.

    Raises FileNotFoundError; ValueError naming the file, and what of it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    data = path.read_bytes()
    try:
        header = _header(data)
        return _pixels(data, header)
    except _Unusable as error:
        raise ValueError(f"{path}: {error}") from error
    except (struct.error, zlib.error, ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{path}: is a broken or truncated OpenEXR file ({error})") from error


class _Unusable(Exception):
    """What a whole file has that is not read."""


def _header(data: bytes) -> _Header:
    magic, version = struct.unpack_from("<2I", data)
    if magic != _MAGIC:
        raise _Unusable("is no OpenEXR file")
    for flag, kind in _OTHER_KINDS.items():
        if version & flag:
            raise _Unusable(f"has {kind}; allowed is one part of scan lines")
    at, values = 8, {}
    while data[at]:
        name, at = _text(data, at)
        _, at = _text(data, at)
        (size,) = struct.unpack_from("<i", data, at)
        if not 0 <= size <= len(data) - at:
            raise ValueError(f"{name} has {size} bytes")
        values[name], at = data[at + 4 : at + 4 + size], at + 4 + size
    number = values["compression"][0]
    compression = _COMPRESSIONS[number] if number < len(_COMPRESSIONS) else str(number)
    if compression not in _ROWS:
        raise _Unusable(
            f"compression = {compression}: allowed are {', '.join(_ROWS)}; write it with ZIP"
        )
    left, top, right, bottom = struct.unpack("<4i", values["dataWindow"])
    height, width = bottom - top + 1, right - left + 1
    if not (0 < height <= _LARGEST and 0 < width <= _LARGEST):
        raise ValueError(f"{height} x {width} pixels")
    channels = _channels(values["channels"])
    return _Header(channels, compression, height, width, top, at + 1)


def _channels(data: bytes) -> dict[str, np.dtype]:
    at, found = 0, {}
    while data[at]:
        name, at = _text(data, at)
        kind, _, *sampling = struct.unpack_from("<2i2i", data, at)
        if sampling != [1, 1]:
            raise _Unusable(f"channel {name}: is sampled every {sampling} pixels, not every one")
        found[name], at = _DTYPES[kind], at + 16
    return found


def _text(data: bytes, at: int) -> tuple[str, int]:
    """The text that a zero ends, and where the next value begins."""
    end = data.index(0, at)
    return data[at:end].decode("utf-8"), end + 1


def _pixels(data: bytes, header: _Header) -> dict[str, Float[np.ndarray, "h w"]]:
    rows, row_bytes = _ROWS[header.compression], 0
    for dtype in header.channels.values():
        row_bytes += dtype.itemsize * header.width
    found = {name: np.empty((header.height, header.width), np.float32) for name in header.channels}
    count = -(-header.height // rows)
    for offset in struct.unpack_from(f"<{count}Q", data, header.begin):
        row, size = struct.unpack_from("<ii", data, offset)
        first = row - header.first_row
        if first % rows or not 0 <= first < header.height:
            raise ValueError(f"a block begins at row {row}")
        block = data[offset + 8 : offset + 8 + size]
        wanted = min(rows, header.height - first)
        raw = _unpacked(block, header.compression, wanted * row_bytes)
        for line in range(wanted):
            at = line * row_bytes
            for name, dtype in header.channels.items():
                values = np.frombuffer(raw, dtype, header.width, at)
                found[name][first + line], at = values, at + dtype.itemsize * header.width
    return found


def _unpacked(block: bytes, compression: str, size: int) -> bytes:
    """The bytes of some rows. A block that compression would enlarge is stored as it is."""
    if compression == "none" or len(block) == size:
        found = block
    else:
        packed = _runs(block) if compression == "RLE" else zlib.decompress(block)
        found = _interleaved(np.frombuffer(packed, np.uint8)).tobytes()
    if len(found) != size:
        raise ValueError(f"a block has {len(found)} bytes, not {size}")
    return found


def _interleaved(packed: UInt8[np.ndarray, "n"]) -> Shaped[np.ndarray, "n"]:
    """Undoes what is done before compression: differences of neighbouring bytes plus 128, of the
    bytes of even places and then of those of odd places."""
    steps = packed.astype(np.int64)
    steps[1:] -= 128
    values = np.cumsum(steps).astype(np.uint8)
    half = -(-len(values) // 2)
    found = np.empty_like(values)
    found[::2], found[1::2] = values[:half], values[half:]
    return found


def _runs(block: bytes) -> bytes:
    """A negative count is followed by as many bytes, another by one byte that stands once more than
    counted."""
    at, found = 0, bytearray()
    while at < len(block):
        (count,) = struct.unpack_from("b", block, at)
        if count < 0:
            found += block[at + 1 : at + 1 - count]
            at += 1 - count
        else:
            found += block[at + 1 : at + 2] * (count + 1)
            at += 2
    return bytes(found)
