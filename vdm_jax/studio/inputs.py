"""What a visitor uploads or paints, as files that a command reads."""

import shutil
from pathlib import Path

import numpy as np
from PIL import Image

from vdm_jax.studio import paint
from vdm_jax.studio.models import Card
from vdm_jax.studio.requests import RequestError

_EDITOR_SIDE = 320  # pixels of the shorter side of the picture that is painted on


def keep(upload: str | Path, folder: Path, *, name: str = "input") -> Path:
    """A copy of an upload in the folder of a job, called `name`.

    Raises RequestError for a file that holds no video and no picture.
    """
    from vdm_jax.data import video_io

    upload = Path(upload)
    if not upload.is_file():
        raise RequestError("the uploaded file is gone: upload it again")
    if upload.suffix != ".npz":
        _readable(lambda: video_io.read_video(upload, frames=1), upload)
    return Path(shutil.copyfile(upload, folder / f"{name}{upload.suffix.lower()}"))


def keep_clip(upload: str | Path, folder: Path, card: Card) -> Path:
    """One clip of the model's length of an upload, as an archive in the folder of a job: the first
    frames at the model's rate. Raises RequestError for an upload that is too short, or no video."""
    from vdm_jax.data import video_io

    upload = Path(upload)
    if upload.suffix == ".npz":
        return keep(upload, folder)
    frames, height, width = card.shape
    video, rate = _readable(
        lambda: video_io.read_video(upload, size=(height, width), frames=frames, fps=card.fps),
        upload,
    )
    if len(video) < frames:
        raise RequestError(
            f"{upload.name}: has {len(video)} frames at the model's {card.fps:g} fps, and the "
            f"model's clips have {frames}: upload a longer video"
        )
    path = folder / "input.npz"
    with path.open("wb") as file:
        np.savez_compressed(file, video=video[None], fps=np.float64(rate))
    return path


def first_frame(upload: str | Path, card: Card) -> np.ndarray:
    """The part of the first frame that the model takes, uint8 `h w 3`, large enough to paint on.

    Raises RequestError for a file that holds no video and no picture.
    """
    from vdm_jax.data import source, video_io

    upload, size = Path(upload), card.shape[1:]
    if upload.suffix == ".npz":
        raise RequestError(f"{upload.name}: paint on a video or a picture, not on an archive")
    video, _ = _readable(lambda: video_io.read_video(upload, size=size, frames=1), upload)
    return video_io.enlarge(source.fit(video, *size), _EDITOR_SIDE)[0]


def keep_mask(drawn: str, folder: Path) -> Path:
    """What was painted, as a picture in the folder of a job: white where it was.

    drawn: of `paint`'s text field. Raises RequestError where nothing was painted.
    """
    mask = paint.painted(drawn)
    if not mask.any():
        raise RequestError("nothing is painted: paint over the part to make anew")
    path = folder / "mask.png"
    Image.fromarray(np.where(mask, np.uint8(255), np.uint8(0))).save(path)
    return path


def _readable(read, upload: Path):
    """What `read` returns. Raises RequestError with the reader's reason, and the upload's name."""
    try:
        return read()
    except (ValueError, OSError) as error:
        reason = str(error).replace(str(upload), upload.name)
        raise RequestError(f"{reason}. Upload a video (MP4, WebM, GIF) or a picture") from error
