"""How a stage's own clips are made from the data's: coarser, fewer frames, parts of them.

One data set of full clips trains every stage of a cascade. The workers of the data pipeline choose
frames and cut clips (`stage.window`); the device scales what they read.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from vdm_jax.stage import resize
from vdm_jax.stage.window import AT_THE_PLACE, PartReading, Reaches, Reading


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """The stage's clips as a function of the data's.

    Attributes:
      shape: (f, h, w, c) of the stage's clips.
      data_shape: (f, h, w, c) of the data's clips, multiples of `shape`; None = `shape`.
      data_fps: frames a second of the data's clips; 0 = not known.
      frame_strides: steps in time at which frames are taken from the data's clips. One stride and a
        start are drawn for each example. (): every k-th frame, so that a clip spans the data's.
      crop: (h, w) or (f, h, w) of the random part of a clip that is trained on; () = all of it.
        The workers draw it, and read a window around it. (h, w) is for networks that are fully
        convolutional, f for networks that are sampled in windows of f frames.
    """

    shape: tuple[int, int, int, int]
    data_shape: tuple[int, int, int, int] | None = None
    data_fps: float = 0.0
    frame_strides: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()
    part: bool = False

    def __post_init__(self):
        if self.data_shape is None:
            object.__setattr__(self, "data_shape", self.shape)
        if self.part:
            self._check_part()
        else:
            # With strides the frames are drawn, and their number need not divide the data's.
            frames = self.shape[0] if self.frame_strides else self.data_shape[0]
            resize.ratios((frames, *self.data_shape[1:]), self.shape)
        for stride in self.frame_strides:
            span = (self.shape[0] - 1) * stride + 1
            if span > self.data_shape[0]:
                raise ValueError(
                    f"frame_strides: {stride} takes {span} frames, clips have {self.data_shape[0]}"
                )
        if len(self.crop) not in (0, 2, 3):
            raise ValueError(f"crop = {self.crop}: must be (h, w), (f, h, w) or ()")
        shape = self.shape[:3]
        if self.crop and any(p > s for p, s in zip(self.crop_shape, shape, strict=True)):
            raise ValueError(f"crop = {self.crop}: clips are {shape} (frames, height, width)")

    def _check_part(self) -> None:
        if self.frame_strides or self.crop:
            raise ValueError("part: goes with no frame_strides and no crop")
        if any(p > s for p, s in zip(self.shape[:3], self.data_shape[:3], strict=True)):
            raise ValueError(
                f"parts of {self.shape[:3]} (frames, height, width): the data's clips are "
                f"{self.data_shape[:3]}"
            )

    @property
    def fps(self) -> float:
        """Frames a second of the stage's clips; of the first stride, where there are several."""
        if self.part:
            return self.data_fps
        stride = self.frame_strides[0] if self.frame_strides else None
        return self.data_fps / (stride or self.data_shape[0] // self.shape[0])

    @property
    def rates(self) -> tuple[float, ...]:
        """Frames a second of the stage's clips in training, each rate once; () = not known."""
        if not self.data_fps:
            return ()
        return tuple(self.data_fps / stride for stride in self.frame_strides) or (self.fps,)

    @property
    def crop_shape(self) -> tuple[int, int, int]:
        """(f, h, w) of the part of a clip that is trained on."""
        if not self.crop:
            return self.shape[:3]
        return (self.shape[0], *self.crop) if len(self.crop) == 2 else self.crop

    def reading(self, reach: Reaches = AT_THE_PLACE) -> Reading:
        """What the data's workers read of a clip for one example.

        reach: how far the stage's conditions depend on the clip.
        """
        if self.part:
            shape, data_shape = self.shape[:3], self.data_shape[:3]
            factor = min(d // s for d, s in zip(data_shape[1:], shape[1:], strict=True))
            return PartReading(data_shape=data_shape, shape=shape, crop=shape, factor=factor)
        return Reading(
            data_shape=self.data_shape[:3],
            shape=self.shape[:3],
            strides=self.frame_strides,
            data_fps=self.data_fps,
            crop=self.crop_shape,
            reach=reach,
        )

    def frames(self, read: Float[Array, "b f h w c"]) -> Float[Array, "b f h2 w2 c"]:
        """Frames as they are read, in the resolution of the stage."""
        (down, across), (count, height, width) = self.reading().scale, read.shape[1:4]
        return resize.coarsen(read, (count, height // down, width // across))

    def cropped(
        self, videos: list[Array], place: Int32[Array, "b 3"], num_images: int
    ) -> list[Float[Array, "b f h w _"]]:
        """The crop of every video; `place` is the first frame, row and column of each example's.

        The last `num_images` frames are images: all of them stay, cropped in space only.
        """
        frames, height, width = self.crop_shape

        def cut(video: Array, place: Array) -> Array:
            start, top, left = place
            clip = video.shape[0] - num_images

            def part(frames: Array, start: Array, count: int) -> Array:
                size = (count, height, width, video.shape[3])
                return jax.lax.dynamic_slice(frames, (start, top, left, 0), size)

            images = part(video[clip:], jnp.zeros_like(start), num_images)
            return jnp.concatenate([part(video[:clip], start, frames), images])

        return [jax.vmap(cut)(video, place) for video in videos]
