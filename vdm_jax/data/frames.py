"""Decoded frames and still images as upright RGB pictures of square pixels.

A file stores pictures as the sensor or the broadcast had them: pixels that are not square (sample
aspect ratio), turned or mirrored (display matrix of a container, EXIF orientation of a photo). All
readers, of training, editing and evaluation, make their pictures here.
"""

import dataclasses
from fractions import Fraction
from typing import Self

import av
import numpy as np
from av.video.reformatter import VideoReformatter
from jaxtyping import UInt8
from PIL import Image, ImageOps

# An aspect ratio beyond these is a damaged header. Those in use are between 1/2 and 3.
_MOST_ASPECT = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Geometry:
    """How stored pictures become upright ones.

    A picture is transposed first (`swap`: rows become columns), then flipped.

    Attributes:
      height, width: of the stored picture, in pixels.
      aspect: width of a stored pixel over its height.
      swap, flip_rows, flip_columns: see above; flip_rows exchanges top and bottom.
    """

    height: int
    width: int
    aspect: Fraction = Fraction(1)
    swap: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @classmethod
    def of_frame(cls, frame: av.VideoFrame, aspect: Fraction | None) -> Self:
        """The geometry of a decoded frame; aspect: of its stream, None or 0 = unknown.

        The display matrix is the frame's side data, as FFmpeg reads it from MOV, MP4, Matroska and
        H.264 (libavutil/display.h): it maps a stored place (x, y) to (a x + c y, b x + d y).
        Angles between quarter turns become the nearest one.
        """
        if not aspect or not 1 / _MOST_ASPECT <= aspect <= _MOST_ASPECT:
            aspect = Fraction(1)
        swap = flip_rows = flip_columns = False
        data = frame.side_data.get("DISPLAYMATRIX")
        if data is not None:
            a, b, _, c, d = np.frombuffer(bytes(data), np.int32, 5).astype(int)
            swap = abs(b) + abs(c) > abs(a) + abs(d)
            flip_columns = bool((c if swap else a) < 0)
            flip_rows = bool((b if swap else d) < 0)
        return cls(
            height=frame.height,
            width=frame.width,
            aspect=Fraction(aspect),
            swap=bool(swap),
            flip_rows=flip_rows,
            flip_columns=flip_columns,
        )

    @property
    def upright_size(self) -> tuple[int, int]:
        """(height, width) of the upright picture; the side with too few pixels is stretched."""
        height, width = self.height, self.width
        if self.aspect > 1:
            width = round(width * self.aspect)
        else:
            height = round(height / self.aspect)
        return (width, height) if self.swap else (height, width)


def upright(
    picture: av.VideoFrame | Image.Image,
    size: tuple[int, int] | None = None,
    *,
    geometry: Geometry | None = None,
    reformatter: VideoReformatter | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """A decoded frame, or a still image with its EXIF orientation, as square RGB pixels.

    size: (height, width) of the result, which the picture is scaled to cover and whose middle is
    cut out of it; None: as large as it is. geometry: of the frame's file (`Geometry.of_frame`);
    without it, the frame's own, with square pixels. reformatter: kept between frames of a file, it
    saves time.
    """
    if isinstance(picture, Image.Image):
        return _upright_still(picture, size)
    if geometry is None:
        geometry = Geometry.of_frame(picture, None)
    if (picture.height, picture.width) != (geometry.height, geometry.width):
        # Another size in mid-stream; what is shown stays as large as before.
        size = size or geometry.upright_size
        geometry = dataclasses.replace(geometry, height=picture.height, width=picture.width)
    height, width = size or geometry.upright_size
    if geometry.swap:  # the picture is turned last
        height, width = width, height
    wide = geometry.width * float(geometry.aspect)
    scale = max(height / geometry.height, width / wide)
    full_height = max(height, round(geometry.height * scale))
    full_width = max(width, round(wide * scale))
    image = (reformatter or VideoReformatter()).reformat(
        picture, width=full_width, height=full_height, format="rgb24", interpolation="BICUBIC"
    )
    top, left = (full_height - height) // 2, (full_width - width) // 2
    cut = image.to_ndarray()[top : top + height, left : left + width]
    if geometry.swap:
        cut = cut.transpose(1, 0, 2)
    if geometry.flip_rows:
        cut = cut[::-1]
    if geometry.flip_columns:
        cut = cut[:, ::-1]
    return np.array(cut, order="C")


def _upright_still(image: Image.Image, size: tuple[int, int] | None) -> np.ndarray:
    if size is not None:
        # A JPEG is decoded at half the size or less where that is enough.
        image.draft("RGB", (2 * max(size), 2 * max(size)))
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # Pillow's conversion would clip
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    if size is not None:
        image = ImageOps.fit(image, size[::-1], Image.Resampling.BICUBIC)
    return np.asarray(image).copy()
