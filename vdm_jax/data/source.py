"""What every source of clips has in common: random access to captioned clips of one shape."""

import abc
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vdm_jax.stage.window import Part

OF_FILES = ("video_folder", "video_shards")  # values of `data.name` that are no TFDS data set


class DataError(ValueError):
    """Data that is missing, unusable, or not as configured; the message says which."""


class ClipSource(abc.ABC):
    """Random access to clips. Pickled into worker processes, so files are opened on first use."""

    video_shape: tuple[int, int, int, int]
    num_labels: int = 0  # 0: examples have no "label"
    extras: tuple[str, ...] = ()  # names of further arrays of every clip, uint8 [f, h, w, c]

    @abc.abstractmethod
    def __len__(self) -> int:
        """The number of clips."""

    @abc.abstractmethod
    def read(self, index: int, rng: np.random.Generator | None = None) -> dict[str, Any]:
        """The clip: {"video": uint8 [f, h, w, 3], "caption": str[, "label": int]}, and `extras`.

        A source whose frames have captions of their own adds "frame_captions", a list of f texts;
        the caption of a clip of one frame is that frame's. Where a stored video is longer than a
        clip, `rng` chooses the part; without it the middle.
        """

    @abc.abstractmethod
    def captions(self) -> Sequence[str]:
        """Captions of the source, at least one of every kind: what a vocabulary is made from."""

    def read_part(
        self, index: int, part: Part, rng: np.random.Generator | None = None
    ) -> dict[str, Any]:
        """`part` of the clip that `read` gives, as `read` gives it.

        Sources that can read a part without the whole override this.
        """
        clip = self.read(index, rng)
        return clip | {name: part.of(clip[name]) for name in ("video", *self.extras)}

    def read_frame(self, index: int, rng: np.random.Generator) -> dict[str, Any]:
        """One random frame of the clip: {"image": uint8 [h, w, 3], "caption": str}, and `extras`,
        uint8 [h, w, c].

        The caption is the frame's own where the source has one, else the clip's.
        """
        example = self.read(index, rng)
        frame = int(rng.integers(len(example["video"])))
        captions = example.get("frame_captions")
        caption = captions[frame] if captions else example["caption"]
        extras = {name: example[name][frame] for name in self.extras}
        return {"image": example["video"][frame], "caption": caption, **extras}

    def summary(self) -> str:
        """One or more lines for people: how many clips, and what was skipped and why."""
        return f"{len(self)} clips"

    def __getitem__(self, index: int) -> dict[str, Any]:
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        return self.read(index)


def window(
    length: int, num_frames: int, stride: int, rng: np.random.Generator | None = None
) -> slice:
    """Which frames of a video of `length` frames are a clip of `num_frames`, `stride` apart.

    `rng` chooses the start; without it the middle of the video is taken. Raises DataError for a
    video that is too short.
    """
    span = (num_frames - 1) * stride + 1
    if span > length:
        raise DataError(
            f"data.num_frames = {num_frames} at data.frame_stride = {stride} takes {span} frames, "
            f"but the video has {length}"
        )
    spare = length - span
    start = spare // 2 if rng is None else int(rng.integers(spare + 1))
    return slice(start, start + span, stride)


def fit(
    frames: UInt8[np.ndarray, "f h w c"], height: int, width: int = 0
) -> UInt8[np.ndarray, "f {height} _ 3"]:
    """The centre of every frame in the shape `height` by `width` (0 = square), resized
    (anti-aliased); grey becomes RGB."""
    width = width or height
    if frames.shape[-1] == 1:
        frames = np.repeat(frames, 3, axis=-1)
    full_height, full_width = frames.shape[1:3]
    scale = min(full_height / height, full_width / width)
    cut_height, cut_width = round(height * scale), round(width * scale)
    top, left = (full_height - cut_height) // 2, (full_width - cut_width) // 2
    frames = frames[:, top : top + cut_height, left : left + cut_width]
    if (cut_height, cut_width) == (height, width):
        return np.ascontiguousarray(frames)
    resample = Image.Resampling.BICUBIC
    return np.stack([Image.fromarray(f).resize((width, height), resample) for f in frames])
