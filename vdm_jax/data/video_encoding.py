"""Frames to H.264 in MP4 or AV1 in WebM, with the sound of another file and a comment.

HEVC is never written: its patents make players and browsers of many systems refuse it.
"""

import dataclasses
import fractions
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace

from vdm_jax.data import video_container

_BT709 = 1  # the code of its primaries, its transfer and its matrix (ITU-T H.273)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Container:
    """A kind of file, and what it holds.

    Attributes:
      name: FFmpeg's, of its muxer.
      encoder: of the pictures.
      options: of the encoder.
      copied: codecs of sound that the file takes as they are.
      sound: the encoder of any other sound.
    """

    name: str
    encoder: str
    options: Mapping[str, str]
    copied: tuple[str, ...]
    sound: str


# The quality of both keeps hard pixel edges of small videos crisp; the files are tiny all the same.
MP4 = Container(
    name="mp4",
    encoder="libx264",
    options={"crf": "12", "preset": "veryfast"},
    copied=("aac", "mp3", "ac3", "opus", "flac"),
    sound="aac",
)
WEBM = Container(
    name="webm",
    encoder="libsvtav1",
    options={"crf": "20", "preset": "8", "svtav1-params": "lp=1"},
    copied=("opus", "vorbis"),
    sound="libopus",
)


def encode(
    path: Path,
    video: np.ndarray,
    fps: float,
    kind: Container,
    comment: str = "",
    sound: str | Path | None = None,
) -> None:
    """Writes one clip uint8 `f h w 3` in yuv420p, which every player opens.

    An odd side is completed by repeating its last row or column, because yuv420p stores colour at
    half resolution. Colours are converted by BT.709's matrix and the file says so; of an untagged
    file players guess the matrix from its size.

    Args:
      comment: of the file, which its metadata holds.
      sound: a file whose first sound is taken, for as long as the clip lasts; without one, silence.

    Raises PyAV's errors and OSError.
    """
    height, width = video.shape[1:3]
    video = np.pad(video, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    # A file object: FFmpeg takes a name with a colon for a protocol, and wants UTF-8.
    with path.open("wb") as file, av.open(file, "w", format=kind.name) as container:
        if comment:
            container.metadata["comment"] = comment
        rate = fractions.Fraction(fps).limit_denominator(1000)
        stream = container.add_stream(kind.encoder, rate=rate)
        stream.height, stream.width = video.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.options = dict(kind.options)
        context = stream.codec_context
        context.color_primaries = context.color_trc = context.colorspace = _BT709
        context.color_range = ColorRange.MPEG
        if sound is not None:
            _add_sound(container, kind, sound, len(video) / fps)
        for pixels in video:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            frame = frame.reformat(
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
                interpolation="BICUBIC",
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def has_sound(path: str | Path) -> bool:
    """Whether a file is a video with sound. Raises OSError."""
    try:
        with video_container.open_video(path) as container:
            return bool(container.streams.audio)
    except av.error.FFmpegError:
        return False


def _add_sound(
    container: av.container.OutputContainer, kind: Container, source: str | Path, seconds: float
) -> None:
    """Adds the first `seconds` of the sound of `source`, counted from its first picture."""
    with video_container.open_video(source) as opened:
        if not opened.streams.audio:
            return
        stream = opened.streams.audio[0]
        pictures = video_container.video_stream(opened)
        begin = float((pictures.start_time or 0) * pictures.time_base)
        if stream.codec_context.name in kind.copied:
            _copy(container, opened, stream, begin, seconds)
        else:
            _convert(container, opened, stream, begin, seconds, kind.sound)


def _copy(container, opened, stream, begin: float, seconds: float) -> None:
    added = container.add_stream_from_template(stream)
    shift = round(begin / stream.time_base)
    for packet in opened.demux(stream):
        if packet.pts is None or packet.dts is None:
            continue
        at = float(packet.pts * stream.time_base) - begin
        if at >= seconds:
            break
        if at >= 0:
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = added
            container.mux(packet)


def _convert(container, opened, stream, begin: float, seconds: float, encoder: str) -> None:
    rate = 48_000
    added = container.add_stream(encoder, rate=rate, layout="stereo")
    context = added.codec_context
    resampler = av.AudioResampler(
        format=context.format, layout="stereo", rate=rate, frame_size=context.frame_size or None
    )
    samples = 0

    def write(frame: av.AudioFrame | None) -> None:
        nonlocal samples
        for part in resampler.resample(frame):
            if samples < seconds * rate:
                part.pts, part.time_base = samples, fractions.Fraction(1, rate)
                samples += part.samples
                container.mux(added.encode(part))

    for frame in opened.decode(stream):
        if frame.time is None or frame.time < begin:
            continue
        if frame.time - begin >= seconds:
            break
        frame.pts = None
        write(frame)
    write(None)
    container.mux(added.encode())
