"""OpenEXR files as FFmpeg writes them, and broken ones."""

import fractions
import struct

import av
import numpy as np
import pytest

from vdm_jax.data import exr

HEIGHT, WIDTH = 37, 18  # several blocks of 16 rows, the last not full


def write(path, pixels, compression="zip16", form="float"):
    """A grey image `h w`, or one `h w 3`, by FFmpeg's encoder."""
    grey = pixels.ndim == 2
    context = av.CodecContext.create("exr", "w")
    context.width, context.height = pixels.shape[1], pixels.shape[0]
    context.pix_fmt = "grayf32le" if grey else "gbrpf32le"
    context.time_base = fractions.Fraction(1, 25)
    context.options = {"compression": compression, "format": form}
    frame = av.VideoFrame(pixels.shape[1], pixels.shape[0], context.pix_fmt)
    planes = [pixels] if grey else [pixels[..., i] for i in (1, 2, 0)]
    for plane, values in zip(frame.planes, planes, strict=True):
        rows = np.zeros((pixels.shape[0], plane.line_size // 4), np.float32)
        rows[:, : pixels.shape[1]] = values
        plane.update(rows.tobytes())
    packets = [*context.encode(frame), *context.encode(None)]
    path.write_bytes(b"".join(bytes(packet) for packet in packets))
    return path


@pytest.fixture(scope="module")
def pixels():
    """Noise, which compression enlarges, beside smooth parts."""
    rng = np.random.default_rng(0)
    found = rng.normal(size=(HEIGHT, WIDTH, 3)).astype(np.float32)
    found[8:30] = np.linspace(0.5, 40, WIDTH, dtype=np.float32)[:, None]
    return found


@pytest.mark.parametrize("form", ["float", "half"])
@pytest.mark.parametrize("compression", ["none", "rle", "zip1", "zip16"])
def test_every_value_is_read(tmp_path, pixels, compression, form):
    if form == "half":  # of values that it holds: FFmpeg cuts others, and does not round them
        pixels = pixels.astype(np.float16).astype(np.float32)
    found = exr.read(write(tmp_path / "depth.exr", pixels, compression, form))
    assert found.keys() == {"R", "G", "B"}
    for number, name in enumerate("RGB"):
        np.testing.assert_array_equal(found[name], pixels[..., number])


def test_one_channel_is_one(tmp_path, pixels):
    found = exr.read(write(tmp_path / "depth.exr", pixels[..., 0]))
    (values,) = found.values()
    np.testing.assert_array_equal(values, pixels[..., 0])


def changed(data, name, value):
    """The file with another value of an attribute, of equal length."""
    at = data.index(name.encode() + b"\0") + len(name) + 1
    at = data.index(b"\0", at) + 5
    return data[:at] + value + data[at + len(value) :]


def test_what_cannot_be_read_is_named(tmp_path, pixels):
    data = write(tmp_path / "depth.exr", pixels[..., 0]).read_bytes()
    path = tmp_path / "other.exr"
    for content, message in (
        (b"PNG", "broken or truncated"),
        (b"\x89PNG" + data[4:], "is no OpenEXR file"),
        (data[: len(data) // 2], "broken or truncated"),
        (data[:4] + struct.pack("<I", 2 | 0x200) + data[8:], "has tiles; allowed is one part"),
        (changed(data, "compression", b"\4"), "compression = PIZ: allowed are none, RLE, ZIPS, ZI"),
        (changed(data, "dataWindow", struct.pack("<4i", 0, 0, 2**30, 2)), "1073741825 pixels"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=message) as raised:
            exr.read(path)
        assert str(path) in str(raised.value)
    with pytest.raises(FileNotFoundError, match="no such file"):
        exr.read(tmp_path / "none.exr")
    # Any flipped byte gives pixels or an error that names the file.
    rng = np.random.default_rng(0)
    for at in rng.integers(0, len(data), 200):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1 << int(rng.integers(8))]) + data[at + 1 :])
        try:
            exr.read(path)
        except ValueError as error:
            assert str(path) in str(error)
