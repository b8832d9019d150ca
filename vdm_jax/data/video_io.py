"""Videos as files: MP4, WebM and GIF writing, contact sheets, reading back.

Videos here are numpy uint8 arrays: one clip `f h w c`, a list of clips `n f h w c`, c = 3 (RGB).
"""

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from einops import rearrange, repeat
from PIL import GifImagePlugin, Image, ImageDraw

from vdm_jax.data import recipes, video_container, video_encoding, video_indexing, video_reader
from vdm_jax.data.frames import Geometry, upright
from vdm_jax.data.lettering import Lettering
from vdm_jax.data.source import DataError

# Clips smaller than this are enlarged by a whole factor: a 16-pixel video cannot be watched.
MIN_WATCHABLE = 192
# More clips than this on a contact sheet are not looked at one by one.
SHEET_CLIPS = 32
_SHEET_FRAMES = 16  # of a clip, on a contact sheet
_CAPTION_WIDTH = 420  # pixels that a caption may take where the frames below it take less
_INK, _PAPER = (235, 235, 235), (24, 24, 24)
_GIF_LEAST = 2  # hundredths of a second: players take a frame of less for one of ten
_GIF_COLOURS = 255  # of the 256 one is kept for pixels that stay as they are


def enlarge(video: np.ndarray, min_size: int = MIN_WATCHABLE) -> np.ndarray:
    """Repeats pixels by the smallest whole factor that makes the shorter side >= min_size.

    video: uint8 `... h w c`; one that is large enough comes back unchanged.
    """
    factor = max(1, math.ceil(min_size / min(video.shape[-3:-1])))
    return repeat(video, "... h w c -> ... (h fh) (w fw) c", fh=factor, fw=factor)


def grid(
    videos: np.ndarray,
    columns: int | None = None,
    gap: int = 2,
    color: tuple[int, int, int] = (0, 0, 0),
) -> np.ndarray:
    """Clips `n f h w c` side by side as one clip `f H W c`, filled row by row.

    columns: default the square root of n, rounded up. gap: pixels between clips. color: RGB of the
    gaps and of cells without a clip.
    """
    videos = _check(videos, 5)
    count, frames, height, width, _ = videos.shape
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    cells = count + -count % columns
    padded = np.full((cells, frames, height + gap, width + gap, 3), color, np.uint8)
    padded[:count, :, :height, :width] = videos
    tiled = rearrange(padded, "(row col) f h w c -> f (row h) (col w) c", col=columns)
    return tiled[:, : tiled.shape[1] - gap, : tiled.shape[2] - gap]


def write_mp4(
    path: str | Path,
    video: np.ndarray,
    fps: float = 8,
    min_size: int = MIN_WATCHABLE,
    *,
    comment: str = "",
    sound: str | Path | None = None,
) -> Path:
    """Writes one clip uint8 `f h w c` as H.264, small ones enlarged (`video_encoding.encode`)."""
    path = _parent_made(path)
    video = enlarge(_check(video, 4), min_size)
    video_encoding.encode(path, video, fps, video_encoding.MP4, comment, sound)
    return path


def write_webm(
    path: str | Path,
    video: np.ndarray,
    fps: float = 8,
    min_size: int = MIN_WATCHABLE,
    *,
    comment: str = "",
    sound: str | Path | None = None,
) -> Path:
    """Writes one clip uint8 `f h w c` as AV1, small ones enlarged (`video_encoding.encode`)."""
    path = _parent_made(path)
    video = enlarge(_check(video, 4), min_size)
    video_encoding.encode(path, video, fps, video_encoding.WEBM, comment, sound)
    return path


def write_gif(
    path: str | Path,
    video: np.ndarray,
    fps: float = 8,
    min_size: int = MIN_WATCHABLE,
    *,
    comment: str = "",
) -> Path:
    """Writes one clip uint8 `f h w c` as an endless GIF, small ones enlarged; see `encode_gif`."""
    path = _parent_made(path)
    path.write_bytes(encode_gif(enlarge(_check(video, 4), min_size), fps, comment))
    return path


def encode_gif(video: np.ndarray, fps: float, comment: str = "") -> bytes:
    """One clip uint8 `f h w c` as an endless GIF of the clip's duration.

    Every frame is a frame of the file, also one that equals the frame before it. A GIF counts time
    in hundredths of a second: the frames' times are rounded, not their durations. Players show no
    frame for less than 20 ms, so above 50 frames a second frames are left out, evenly. Each frame
    stores the part that changes, in at most 255 colours of its own. comment: ASCII text that the
    file holds.

    Raises ValueError where `fps` is not above 0.
    """
    video = _check(video, 4)
    shown, times = _gif_times(len(video), fps)
    video = video[shown]
    parts = []
    before: np.ndarray | None = None
    for pixels, hundredths in zip(video, np.diff(times), strict=True):
        image, corner, keep = _gif_part(pixels, before)
        if before is None:
            parts += GifImagePlugin.getheader(image, info={"loop": 0})[0]
            parts += _gif_comment(comment)
        # As long as the format can say.
        setting = {"duration": min(10 * int(hundredths), 655_350), "disposal": 1}
        if keep is not None:
            setting["transparency"] = keep
        parts += GifImagePlugin.getdata(image, corner, include_color_table=True, **setting)
        before = pixels
    return b"".join([*parts, b";"])


def _gif_comment(text: str) -> list[bytes]:
    """A comment extension of GIF89a: blocks of at most 255 bytes, the last of them empty."""
    if not text:
        return []
    content = text.encode("ascii")
    blocks = [content[at : at + 255] for at in range(0, len(content), 255)]
    return [b"!\xfe", *(bytes([len(block)]) + block for block in blocks), b"\0"]


def _gif_times(count: int, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` frames a GIF shows, and when, in hundredths of a second; the end last."""
    if not fps > 0 or not math.isfinite(fps):
        raise ValueError(f"fps = {fps}: must be a number above 0")
    end = max(_GIF_LEAST, round(100 * count / fps))
    rate = 100 / fps
    if rate >= _GIF_LEAST:
        times = np.floor(rate * np.arange(count) + 0.5).astype(int)
        return np.arange(count), np.append(times, max(end, times[-1] + _GIF_LEAST))
    times = np.arange(0, end - _GIF_LEAST + 1, _GIF_LEAST)
    shown = np.minimum(np.floor(times / rate + 0.5).astype(int), count - 1)
    return shown, np.append(times, max(end, times[-1] + _GIF_LEAST))


def _gif_part(
    pixels: np.ndarray, before: np.ndarray | None
) -> tuple[Image.Image, tuple[int, int], int | None]:
    """What a GIF stores of a frame: the part that differs from the frame before it, the part's left
    and top, and the colour number, if any, that keeps the pixel of the frame before."""
    if before is None:
        return _quantised(pixels), (0, 0), None
    changed = (pixels != before).any(-1)
    rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
    if not len(rows):
        rows = columns = np.zeros(1, int)  # a frame has a pixel at least
    top, left = int(rows[0]), int(columns[0])
    part = (slice(top, rows[-1] + 1), slice(left, columns[-1] + 1))
    image, changed = _quantised(pixels[part]), changed[part]
    if changed.all():
        return image, (left, top), None
    numbers = np.asarray(image)
    keep = int(numbers.max()) + 1  # the palette stays as short as it can be
    cleared = Image.frombytes("P", image.size, np.where(changed, numbers, np.uint8(keep)).tobytes())
    cleared.putpalette([*image.getpalette()[: 3 * keep], 0, 0, 0])
    return cleared, (left, top), keep


def _quantised(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).convert(
        "P", palette=Image.Palette.ADAPTIVE, colors=_GIF_COLOURS, dither=Image.Dither.NONE
    )


def contact_sheet(
    path: str | Path,
    videos: np.ndarray,
    captions: Sequence[str],
    frame_size: int = 64,
    max_clips: int = SHEET_CLIPS,
    *,
    comment: str = "",
) -> Path:
    """Writes a PNG that shows clips at a glance: of each its caption and, below, its frames.

    Clips follow each other down the columns, as many columns as bring the sheet near 3:2. Of more
    than `max_clips` clips as many are shown, evenly chosen from first to last, with a note; of
    more than 16 frames likewise 16. Captions that are too long are cut; a letter that no font of
    this machine has is written as an escape (see `lettering`).

    videos: uint8 `n f h w c`; captions: n texts; frame_size: least shorter side of a frame on the
    sheet, in pixels; more than twice as much is scaled down to that; comment: text that the file
    holds.
    """
    videos = _check(videos, 5)
    if len(captions) != len(videos):
        raise ValueError(f"{len(captions)} captions for {len(videos)} clips")
    total = len(videos)
    shown = _evenly(total, max_clips)
    videos = enlarge(videos[shown][:, _evenly(videos.shape[1], _SHEET_FRAMES)], frame_size)
    captions = [captions[index] for index in shown]

    count, frames, height, width, _ = videos.shape
    shrink = min(1.0, 2 * frame_size / min(height, width))
    height, width = round(height * shrink), round(width * shrink)
    gap, text_height = 2, 18
    lettering = Lettering()
    widest = max(frames * (width + gap), _CAPTION_WIDTH)
    lines = [lettering.line(caption, widest - 8) for caption in captions]
    longest = max(math.ceil(lettering.width(line)) for line in lines)
    cell_height = text_height + height + gap
    cell_width = max(frames * (width + gap), longest + 8)
    columns = min(
        range(1, count + 1),
        key=lambda n: abs(math.log(n * cell_width / (-(-count // n) * cell_height) / 1.5)),
    )
    rows = -(-count // columns)
    columns = -(-count // rows)  # none stays empty
    between = 16
    note = f"{count} of {total} clips, evenly chosen" if count < total else ""

    size = (
        columns * (cell_width + between) - between,
        rows * cell_height + (text_height if note else 0),
    )
    sheet = Image.new("RGB", size, _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (video, line) in enumerate(zip(videos, lines, strict=True)):
        column, row = divmod(index, rows)
        left, top = column * (cell_width + between), row * cell_height
        lettering.draw(draw, (left + 4, top + 1), line, _INK)
        for frame, pixels in enumerate(video):
            image = Image.fromarray(pixels)
            if shrink < 1:
                image = image.resize((width, height), Image.Resampling.BOX)
            sheet.paste(image, (left + frame * (width + gap), top + text_height))
    if note:
        lettering.draw(draw, (4, rows * cell_height + 1), note, _INK)
    path = _parent_made(path)
    sheet.save(path, format="PNG", pnginfo=recipes.png_info(comment))
    return path


def read_video(
    path: str | Path,
    *,
    size: tuple[int, int] | None = None,
    frames: int | None = None,
    fps: float = 0.0,
) -> tuple[np.ndarray, float]:
    """Decodes a video file, or a still image as a video of one frame: (uint8 `f h w c`, frames per
    second, 0.0 where there is no rate). Pictures are upright, with square pixels.

    No frame beyond the last that is wanted is decoded, and none is held larger than `size`.

    Args:
      path: a file of any of `video_container.ALLOWED`, or JPEG, PNG, WebP, BMP or TIFF.
      size: (height, width) that every picture is scaled to cover and cut to, around its middle;
        None: as large as it is.
      frames: so many from the first, or fewer where the file is shorter; None: all.
      fps: the rate to resample to by time; 0: every frame, whatever its time.

    Raises ValueError naming the file when it holds no video that can be decoded, and OSError.
    """
    try:
        try:
            if fps:
                return _resampled(path, size, frames, fps), fps
            return _in_order(path, size, frames)
        except (av.error.InvalidDataError, av.error.ArgumentError) as error:
            if (still := _stills(path, size, frames)) is not None:
                return still
            raise error
    except (av.error.FFmpegError, video_container.Unusable, DataError) as error:
        reason = video_container.reason_of(error)
        raise ValueError(f"{path}: cannot be read as a video: {reason}") from error


def _in_order(
    path: str | Path, size: tuple[int, int] | None, frames: int | None
) -> tuple[np.ndarray, float]:
    pictures, pts, dts, geometry = [], [], [], None
    reformatter = VideoReformatter()
    with video_container.open_video(path) as container:
        stream = video_container.video_stream(container)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        for frame in container.decode(stream):
            geometry = geometry or Geometry.of_frame(frame, stream.sample_aspect_ratio)
            if frame.is_corrupt:
                warnings.warn(f"{path}: frame {len(pictures)} is damaged", stacklevel=3)
            pictures.append(upright(frame, size, geometry=geometry, reformatter=reformatter))
            pts.append(video_container.NONE if frame.pts is None else frame.pts)
            dts.append(video_container.NONE if frame.dts is None else frame.dts)
            if len(pictures) == frames:
                break
        tick = float(stream.time_base)
    if not pictures:
        raise video_container.Unusable("no frame can be decoded")
    if len(pictures) > 1:
        step = 1 / (rate * tick) if rate else 1.0
        times = video_indexing.frame_times(np.array(pts), np.array(dts), step)
        rate = (len(times) - 1) / (float(times[-1] - times[0]) * tick)
    return np.stack(pictures), rate


def _resampled(
    path: str | Path, size: tuple[int, int] | None, frames: int | None, fps: float
) -> np.ndarray:
    index = video_indexing.build(path)
    step = index.fps / fps
    count = math.floor((len(index) - 1) / step + 1e-6) + 1
    places = step * np.arange(count if frames is None else min(frames, count))
    try:
        return video_reader.decode(path, index, index.frames_at(places), size)
    except video_reader.IndexMismatch:
        index = video_indexing.build(path, decode=True)
        return video_reader.decode(path, index, index.frames_at(places), size)


def _stills(
    path: str | Path, size: tuple[int, int] | None, frames: int | None
) -> tuple[np.ndarray, float] | None:
    """An image file's picture, or its pictures where it is animated; None where it is none."""
    try:
        with Image.open(path, formats=("JPEG", "PNG", "WEBP", "BMP", "TIFF")) as image:
            count = min(getattr(image, "n_frames", 1), frames or math.inf)
            pictures, seconds = [], 0.0
            for number in range(count):
                if number:
                    image.seek(number)
                pictures.append(upright(image, size))
                seconds += image.info.get("duration", 0) / 1000
    except Image.UnidentifiedImageError:
        return None
    except (SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise video_container.Unusable(str(error)) from error
    return np.stack(pictures), len(pictures) / seconds if seconds else 0.0


def _evenly(count: int, most: int) -> np.ndarray:
    """`most` of the numbers below `count`, from first to last, or all where they are fewer."""
    return np.unique(np.rint(np.linspace(0, count - 1, min(count, most))).astype(int))


def _check(video: np.ndarray, rank: int) -> np.ndarray:
    names = "n f h w c"[-(2 * rank - 1) :]
    video = np.asarray(video)
    if video.dtype != np.uint8 or video.ndim != rank or video.shape[-1] != 3 or 0 in video.shape:
        raise ValueError(
            f"video is {video.dtype} {video.shape}: must be a uint8 array `{names}` with c = 3 "
            "and nothing empty (vdm_jax.stage.to_uint8 converts floats in [-1, 1])"
        )
    return video


def _parent_made(path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
