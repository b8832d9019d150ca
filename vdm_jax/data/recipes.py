"""How a video file was made, as JSON text inside of the file: MP4, WebM, GIF, PNG, WebP, NPZ.

A recipe is a JSON object with the key `vdm_jax`, the version that wrote it. MP4, WebM and GIF hold
it as their comment, PNG as the text chunk `vdm_jax`, WebP as EXIF's ImageDescription, an archive as
the array `recipe`. It is ASCII text.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from vdm_jax.data import video_container

KEY = "vdm_jax"
_DESCRIPTION = 0x010E  # EXIF's ImageDescription


def to_text(recipe: Mapping[str, Any]) -> str:
    """A recipe as ASCII text of one line."""
    return json.dumps(recipe, sort_keys=True)


def png_info(text: str) -> PngInfo | None:
    """What Pillow writes into a PNG file; None for no text."""
    if not text:
        return None
    info = PngInfo()
    info.add_text(KEY, text)
    return info


def webp_exif(text: str) -> Image.Exif:
    """What Pillow writes into a WebP file."""
    exif = Image.Exif()
    if text:
        exif[_DESCRIPTION] = text
    return exif


def read(path: str | Path) -> dict[str, Any]:
    """The recipe that a file holds; of a folder of PNG files, that of the first.

    Raises FileNotFoundError, and ValueError where the file holds none.
    """
    path = Path(path)
    if path.is_dir():
        path = next(iter(sorted(path.glob("*.png"))), path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: there is no such file, and no PNG file in it")
    try:
        found = json.loads(_text(path))
    except (ValueError, OSError, av.error.FFmpegError):
        found = None
    if not isinstance(found, dict) or KEY not in found:
        raise ValueError(
            f"{path}: does not say how it was made; files that vdm wrote do, until a program "
            "removes their metadata"
        )
    return found


def _text(path: Path) -> str:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            return str(arrays["recipe"]) if "recipe" in arrays else ""
    try:
        with Image.open(path, formats=("PNG", "GIF", "WEBP")) as image:
            comment = image.info.get("comment", b"")
            if isinstance(comment, bytes):
                comment = comment.decode("ascii")
            return image.info.get(KEY) or comment or image.getexif().get(_DESCRIPTION, "")
    except Image.UnidentifiedImageError:
        pass
    with video_container.open_video(path) as container:
        tags = {name.lower(): text for name, text in container.metadata.items()}
    return tags.get("comment", "")
