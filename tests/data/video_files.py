"""Writes video files whose frames can be told apart by their pixels, good ones and bad ones.

Every picture shows its number as 4 x 4 blocks: 8 bits, black or white, and below them the same bits
inverted. `number_of` reads it from a picture of any size, also after lossy compression.
"""

import dataclasses
import struct
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from jaxtyping import UInt8

BLOCKS = 4  # a side
_DARK, _BRIGHT = 30, 220
# PyAV's containers and the codecs that each of them takes here.
CODECS = {
    ".mp4": ("libx264", "mpeg4", "libvpx-vp9", "libsvtav1"),
    ".mov": ("libx264", "mpeg4", "mjpeg"),
    ".mkv": ("libx264", "mpeg4", "mpeg2video", "libvpx-vp9", "libvpx", "ffv1"),
    ".webm": ("libvpx-vp9", "libvpx"),
    ".avi": ("libx264", "mpeg4", "mpeg4_packed", "mjpeg", "ffv1"),
    ".mpg": ("mpeg2video", "mpeg1video"),
    ".gif": ("gif",),
}
# Codecs that have B-frames.
B_FRAMES = {"libx264", "mpeg4", "mpeg4_packed", "mpeg2video", "mpeg1video"}
_TICK = Fraction(1, 90000)
_PIXELS = {"gif": "rgb8", "mjpeg": "yuvj420p", "ffv1": "yuv420p"}
_OPTIONS = {
    "libsvtav1": {"preset": "10", "crf": "5", "svtav1-params": "lp=1"},
    "libx264": {"preset": "veryfast", "crf": "18", "x264-params": "scenecut=0"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "crf": "20"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "8"},
}
PATTERNS = ("constant", "falling", "jitter", "dropped", "slower")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Video:
    """What a file is written from.

    Attributes:
      codec: an encoder of `CODECS`. "mpeg4_packed" packs B-frames as XviD does in AVI.
      gop: frames from a key frame to the next.
      b_frames: between two others.
      times: of every frame, in seconds; empty = constant at `fps`.
      fps: frames a second that the file declares.
      sar: sample aspect ratio.
      quarter_turns: counterclockwise, that a player makes. Only .mp4 and .mov hold them.
      mirror: whether a player exchanges left and right after turning.
    """

    codec: str = "libx264"
    frames: int = 24
    gop: int = 10
    b_frames: int = 0
    fps: int = 30
    times: tuple[float, ...] = ()
    width: int = 64
    height: int = 64
    sar: Fraction = Fraction(1)
    quarter_turns: int = 0
    mirror: bool = False
    open_gop: bool = False


def pattern(name: str, frames: int, fps: int = 30, seed: int = 0) -> tuple[float, ...]:
    """Times of frames in seconds: one of `PATTERNS`."""
    steps = np.full(frames - 1, 1 / fps)
    if name == "falling":  # a phone in the dusk
        steps[frames // 2 :] = 1.25 / fps
    elif name == "jitter":
        steps *= np.random.default_rng(seed).uniform(0.8, 1.2, frames - 1)
    elif name == "dropped":
        steps[frames // 3] *= 2
    elif name == "slower":
        steps[frames // 2 :] = 1 / (fps - 1)
    return (0.0, *np.cumsum(steps))


def picture(number: int, height: int, width: int) -> UInt8[np.ndarray, "h w 3"]:
    """The picture of a number below 256."""
    bits = [(number >> bit) & 1 for bit in range(8)]
    blocks = np.array(bits + [1 - bit for bit in bits]).reshape(BLOCKS, BLOCKS)
    rows, columns = (np.arange(side) * BLOCKS // side for side in (height, width))
    grey = np.where(blocks[rows][:, columns], _BRIGHT, _DARK).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=-1)


def number_of(image: UInt8[np.ndarray, "h w 3"]) -> int:
    """The number of a `picture`; -1 where it is not one."""
    sides = image.shape[:2]
    blocks = np.empty((BLOCKS, BLOCKS))
    for row in range(BLOCKS):
        for column in range(BLOCKS):
            cut = [
                slice(-(-side * (4 * i + 1) // 16), max(side * (4 * i + 3) // 16, 1))
                for side, i in zip(sides, (row, column), strict=True)
            ]
            blocks[row, column] = image[cut[0], cut[1]].mean()
    bits = (blocks.reshape(2, 8) > (_DARK + _BRIGHT) / 2).astype(int)
    if (bits[0] == bits[1]).any():
        return -1
    return int((bits[0] << np.arange(8)).sum())


def numbers(video: UInt8[np.ndarray, "f h w 3"]) -> list[int]:
    """`number_of` every frame."""
    return [number_of(frame) for frame in video]


def write(path: Path, video: Video, pictures: Sequence[np.ndarray] | None = None) -> Path:
    """Writes a file in the container that the path's ending names, and returns the path.

    pictures: uint8 `h w 3`, in the place of numbers.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    packed = video.codec == "mpeg4_packed"
    # MPEG-1 and -2 know few rates; times are set afterwards.
    rate = 25 if video.codec in ("mpeg1video", "mpeg2video") else video.fps
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4" if packed else video.codec, rate=rate)
        stream.width, stream.height = video.width, video.height
        stream.pix_fmt = _PIXELS.get(video.codec, "yuv420p")
        if path.suffix in (".mp4", ".mov"):
            stream.time_base = _TICK if video.times else Fraction(1, rate)
        _set_up(stream, video, rate)
        packets = []
        for k in range(video.frames):
            shown = picture(k, video.height, video.width) if pictures is None else pictures[k]
            frame = av.VideoFrame.from_ndarray(shown).reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = k, Fraction(1, rate)
            packets += stream.encode(frame)
        packets += stream.encode()
        if video.times:
            _set_times(packets, video.times, rate, path.suffix == ".avi")
        container.mux(_packed(packets, stream) if packed else packets)
    if video.quarter_turns or video.mirror:
        turned = np.linalg.matrix_power([[0, 1], [-1, 0]], -video.quarter_turns % 4)
        set_matrix(path, (turned @ np.diag([-1 if video.mirror else 1, 1])).ravel())
    return path


def _set_up(stream: av.VideoStream, video: Video, rate: int) -> None:
    context = stream.codec_context
    context.time_base = Fraction(1, rate)
    context.gop_size = video.gop
    context.sample_aspect_ratio = video.sar
    options = dict(_OPTIONS.get(video.codec, {}))
    if video.codec in B_FRAMES:
        context.max_b_frames = video.b_frames
    if video.codec == "libx264":
        options["bf"] = str(video.b_frames)
        options["x264-params"] += f":open-gop={int(video.open_gop)}:b-adapt=0"
    if video.codec in ("mpeg4", "mpeg4_packed", "mpeg1video", "mpeg2video", "mjpeg"):
        context.bit_rate = 4_000_000
    stream.options = options


def _set_times(packets: list[av.Packet], times: Sequence[float], rate: int, whole: bool) -> None:
    """Gives frame k the k-th time; whole: in whole frames, as AVI counts, which has no times."""
    tick = Fraction(1, rate) if whole else _TICK
    for packet in packets:
        number = round(packet.dts * packet.time_base * rate)
        shown = round(packet.pts * packet.time_base * rate)
        start = times[max(number, 0)] + min(number, 0) / rate
        packet.pts, packet.dts = round(times[shown] / tick), round(start / tick)
        packet.time_base = tick


def _packed(packets: list[av.Packet], stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets as XviD stores them in AVI: a B-frame lies in the packet of the frame that it
    needs, and an empty frame stands where the last B-frame was."""
    groups: list[list[av.Packet]] = []
    for packet in packets:
        if _frame_type(packet) != "B":
            groups.append([])
        groups[-1].append(packet)
    chunks: list[tuple[bytes, bool]] = []
    for group in groups:
        first, *others = (bytes(packet) for packet in group)
        mark = b"\0\0\1\xb2DivX503b1393p" if group[0].is_keyframe else b""
        at = first.find(b"\0\0\1\xb6")
        first = first[:at] + mark + first[at:]
        datas = [first + others[0], *others[1:], b"\0\0\1\xb6\x50\x80\x7f"] if others else [first]
        chunks += [(data, group[0].is_keyframe and i == 0) for i, data in enumerate(datas)]
    for number, (data, key) in enumerate(chunks):
        packet = av.Packet(data)
        packet.stream, packet.time_base = stream, stream.codec_context.time_base
        packet.pts = packet.dts = number
        packet.is_keyframe = key
        yield packet


def _frame_type(packet: av.Packet) -> str:
    data = bytes(packet)
    return "IPBS"[data[data.find(b"\0\0\1\xb6") + 4] >> 6]


def sequential(path: Path) -> list[int]:
    """The numbers of all frames as a decoder gives them, from first to last."""
    with av.open(str(path)) as container:
        return [number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def set_matrix(path: Path, matrix: Sequence[float]) -> None:
    """Overwrites the display matrix of an MP4's first track.

    matrix: [a, b, c, d]: a step right in what is stored leads to (a, b), one down to (c, d).
    """
    data = bytearray(path.read_bytes())
    at = data.find(b"tkhd") + 4 + 40  # version 0
    for place, value in zip((0, 4, 12, 16), matrix, strict=True):
        struct.pack_into(">i", data, at + place, round(value * 65536))
    path.write_bytes(data)


def tone(path: Path, codec: str = "aac", seconds: float = 1.0, hertz: float = 440.0) -> Path:
    """Writes a black film of six frames a second whose sound, of a codec, is one tone."""
    rate = 48_000
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=6)
        stream.height, stream.width, stream.pix_fmt = 16, 16, "yuv420p"
        sound = container.add_stream(codec, rate=rate, layout="stereo")
        black = av.VideoFrame.from_ndarray(np.zeros((16, 16, 3), np.uint8), format="rgb24")
        for number in range(int(6 * seconds)):
            black.pts = number
            container.mux(stream.encode(black))
        container.mux(stream.encode())
        wave = np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate).astype(np.float32)
        size = sound.codec_context.frame_size or 1024
        for at in range(0, len(wave) - size, size):
            block = np.stack([wave[at : at + size]] * 2)
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = rate, at
            frame.time_base = Fraction(1, rate)
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
    return path
