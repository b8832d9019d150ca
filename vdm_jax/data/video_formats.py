"""One clip as a file of a chosen format: MP4, WebM, GIF, WebP, or a folder of PNG files."""

from pathlib import Path

import numpy as np
from PIL import Image

from vdm_jax.data import recipes, video_io

DEFAULT = "mp4"
WITH_SOUND = ("mp4", "webm")
FORMATS = (*WITH_SOUND, "gif", "webp", "png")


def write(
    stem: Path,
    video: np.ndarray,
    fps: float,
    kind: str = DEFAULT,
    comment: str = "",
    sound: str | Path | None = None,
) -> Path:
    """Writes one clip uint8 `f h w 3` as `stem` with the ending of a format; returns its path.

    A clip of one frame is a PNG file, whatever the format. A PNG sequence is a folder
    `stem_png/00000.png, ...` of the frames as they are; all other formats enlarge small clips
    (`video_io.enlarge`).

    Args:
      kind: of `FORMATS`.
      comment: text that the file holds (`recipes`); of a PNG sequence, every file.
      sound: a file whose sound is taken; only of `WITH_SOUND`.

    Raises OSError, PyAV's errors.
    """

    def named(ending: str) -> Path:
        return stem.with_name(stem.name + ending)

    if len(video) == 1:
        return _write_png(named(".png"), video[0], comment)
    if kind == "mp4":
        return video_io.write_mp4(named(".mp4"), video, fps, comment=comment, sound=sound)
    if kind == "webm":
        return video_io.write_webm(named(".webm"), video, fps, comment=comment, sound=sound)
    if kind == "gif":
        return video_io.write_gif(named(".gif"), video, fps, comment=comment)
    if kind == "webp":
        return _write_webp(named(".webp"), video, fps, comment)
    folder = named("_png")
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(video):
        _write_png(folder / f"{number:05d}.png", frame, comment)
    return folder


def _write_png(path: Path, frame: np.ndarray, comment: str) -> Path:
    Image.fromarray(frame).save(path, pnginfo=recipes.png_info(comment))
    return path


def _write_webp(path: Path, video: np.ndarray, fps: float, comment: str) -> Path:
    """Lossless. The times of the frames are rounded to milliseconds, not their durations."""
    first, *others = [Image.fromarray(frame) for frame in video_io.enlarge(video)]
    times = np.rint(1000 * np.arange(len(video) + 1) / fps).astype(int)
    first.save(
        path,
        save_all=True,
        append_images=others,
        duration=np.diff(times).tolist(),
        loop=0,
        lossless=True,
        exif=recipes.webp_exif(comment),
    )
    return path
