"""How a stage's own clips are made from the data's: coarser, fewer frames, parts of them.

One data set of full clips trains every stage of a cascade.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vdm_jax.stage import resize


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
        (h, w) is for networks that are fully convolutional, f for networks that are sampled in
        windows of f frames.
    """

    shape: tuple[int, int, int, int]
    data_shape: tuple[int, int, int, int] | None = None
    data_fps: float = 0.0
    frame_strides: tuple[int, ...] = ()
    crop: tuple[int, ...] = ()

    def __post_init__(self):
        if self.data_shape is None:
            object.__setattr__(self, "data_shape", self.shape)
        resize.ratios(self.data_shape, self.shape)
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

    @property
    def fps(self) -> float:
        """Frames a second of the stage's clips; of the first stride, where there are several."""
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

    def clips(
        self, data: Float[Array, "b f h w c"], key: Key[Array, ""]
    ) -> tuple[Float[Array, "b f2 h2 w2 c"], Float[Array, "b"]]:
        """The stage's clips, uncropped, and their frames a second."""
        frames, *size = self.shape[:3]
        n = len(data)
        if not self.frame_strides:
            return resize.coarsen(data, (frames, *size)), jnp.full(n, self.fps)
        stride_key, start_key = jax.random.split(key)
        stride = jax.random.choice(stride_key, jnp.array(self.frame_strides), (n,))
        last = data.shape[1] - (frames - 1) * stride
        start = jnp.floor(jax.random.uniform(start_key, (n,)) * last).astype(jnp.int32)
        index = start[:, None] + stride[:, None] * jnp.arange(frames)
        taken = jnp.take_along_axis(data, index[:, :, None, None, None], axis=1)
        return resize.coarsen(taken, (frames, *size)), self.data_fps / stride

    def images(self, images: Float[Array, "b k h w c"]) -> Float[Array, "b k h2 w2 c"]:
        """The data's images in the size of the stage's frames."""
        return resize.coarsen(images, (images.shape[1], *self.shape[1:3]))

    def cropped(
        self, videos: list[Array], key: Key[Array, ""], num_images: int
    ) -> list[Float[Array, "b f h w _"]]:
        """The same random part of every video, another one for each example.

        The last `num_images` frames are images: all of them stay, cropped in space only.
        """
        n = len(videos[0])
        clip = videos[0].shape[1] - num_images
        top_key, left_key, start_key = jax.random.split(key, 3)

        def place(key: Key[Array, ""], whole: int, part: int) -> Array:
            return jax.random.randint(key, (n,), 0, whole - part + 1)

        frames, height, width = self.crop_shape
        start = place(start_key, clip, frames)
        top = place(top_key, self.shape[1], height)
        left = place(left_key, self.shape[2], width)

        def cut(video: Array, start: Array, top: Array, left: Array) -> Array:
            def part(frames: Array, start: Array, count: int) -> Array:
                size = (count, height, width, video.shape[3])
                return jax.lax.dynamic_slice(frames, (start, top, left, 0), size)

            images = part(video[clip:], jnp.zeros_like(start), num_images)
            return jnp.concatenate([part(video[:clip], start, frames), images])

        return [jax.vmap(cut)(video, start, top, left) for video in videos]
