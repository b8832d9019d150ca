"""Images as published image encoders take them: resized, cropped and normalised on the host."""

import dataclasses

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)
"""Of the red, green and blue of CLIP's training images (Radford et al. 2021, published code)."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Resizes the shorter side, crops the centre, scales to [0, 1] and normalises each channel.

    Attributes:
      shorter: pixels of the shorter side after resizing, by Pillow's bicubic filter, which is
        antialiased and rounds to whole numbers. The longer side keeps the ratio, rounded down.
      crop: (height, width) of the centre that is kept; at most `shorter`.
      mean, deviation: of each channel.
    """

    shorter: int = 224
    crop: tuple[int, int] = (224, 224)
    mean: tuple[float, float, float] = MEAN
    deviation: tuple[float, float, float] = DEVIATION

    def __post_init__(self):
        if max(self.crop) > self.shorter:
            raise ValueError(f"crop = {self.crop}: must be at most shorter = {self.shorter}")

    def __call__(self, images: UInt8[np.ndarray, "n h w 3"]) -> Float[np.ndarray, "n h2 w2 3"]:
        """float32. The published processor's values, up to rounding."""
        n, height, width, _ = images.shape
        scaled = [int(self.shorter * side / min(height, width)) for side in (height, width)]
        size = tuple(
            self.shorter if side == min(height, width) else long
            for side, long in zip((height, width), scaled, strict=True)
        )
        top, left = ((side - kept) // 2 for side, kept in zip(size, self.crop, strict=True))
        cropped = np.empty((n, *self.crop, 3), np.float32)
        for row, image in zip(cropped, images, strict=True):
            resized = Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC)
            pixels = np.asarray(resized)[top : top + self.crop[0], left : left + self.crop[1]]
            row[...] = pixels
        mean, deviation = (np.array(x, np.float32) for x in (self.mean, self.deviation))
        return (cropped * np.float32(1 / 255) - mean) / deviation
