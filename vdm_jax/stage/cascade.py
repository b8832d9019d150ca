"""A stage of a cascade: its examples are made from clips of the finest resolution.

One data set of full clips trains every stage: the base on coarse versions of them, the
super-resolution stages, in space (SSR) or time (TSR), on a finer version given a coarser one.
"""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Key, PyTree, UInt8

from vdm_jax.diffusion import losses
from vdm_jax.diffusion.schedules import alpha_sigma, expand
from vdm_jax.models.condition import Cond
from vdm_jax.stage import resize
from vdm_jax.stage.stage import Batch, Stage, from_uint8, to_uint8

CLEAN = 20.0  # log-SNR that stands for no noise
# Pixels, a side of the squares within which acceleration and contrast are measured.
NEARBY = {"acceleration": 7, "contrast": 5}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CascadeStage(Stage):
    """A base or super-resolution stage (Ho et al. 2022, Imagen Video, sections 2.2 to 2.5).

    Attributes:
      data_shape: (f, h, w, c) of the data's clips, multiples of video_shape.
      data_fps: their frames a second.
      frame_strides: of a base: steps in time at which its clips are taken from the data's, one
        drawn for each example, the start too, and told as the frame rate. (): the first of every
        few frames, so that a clip spans the data's.
      low_res_shape: (f, h, w, c) of the video that is refined; None for a base.
      fill: how the conditioning video is brought to the frames of the stage: see `resize.refine`.
      residual: standard deviation of what is added to the condition, of frames or pixels that were
        not in it, as `fill` makes it and without noise; the network then says how the video differs
        from the best linear estimate of z and the condition, see `about_low_res`. 0 = the network's
        output is `process.prediction` itself.
      residual_of_acceleration: with `fill = "blend"` in time, a further part of that deviation, as
        a share of the given frames' second difference in time there (root mean square of 7 x 7
        pixels), or of twice their change where that is less: a film's frames are all but what is
        blended where nothing moves, or all goes on as before, and far from it where things move
        otherwise.
      residual_of_contrast: where pixels are added, likewise a share of the standard deviation of
        the condition's pixels there (of 5 x 5, root mean square of colours): what is bilinear is
        all but exact where a picture is flat, and far from it at edges.
      max_augmentation: the noise on the conditioning video has in training the log-SNRs of the
        schedule's times from 0 to this; 1 is all of them (noise conditioning augmentation).
      crop: (h, w) of the parts of the frames that are trained on, for networks that are fully
        convolutional, or (f, h, w), f frames in a row of the clip's, for networks that are sampled
        in windows of f frames; () = all.
    """

    data_shape: tuple[int, int, int, int]
    data_fps: float = 0.0
    frame_strides: tuple[int, ...] = ()
    low_res_shape: tuple[int, int, int, int] | None = None
    fill: str = "repeat"
    residual: float = 0.0
    residual_of_acceleration: float = 0.0
    residual_of_contrast: float = 0.0
    max_augmentation: float = 1.0
    crop: tuple[int, ...] = ()

    def __post_init__(self):
        # Sizes that do not fit are told here.
        resize.ratios(self.data_shape, self.video_shape)
        if self.low_res_shape is not None:
            resize.ratios(self.video_shape, self.low_res_shape)
        if self.fill not in resize.FILLS:
            raise ValueError(f"fill = {self.fill!r}: allowed are {', '.join(resize.FILLS)}")
        if not 0 <= self.residual <= 1:
            raise ValueError(f"residual = {self.residual}: must be from 0 to 1")
        if self.residual and self.low_res_shape is None:
            raise ValueError(f"residual = {self.residual}: this stage refines no video")
        if self.residual and self.process.prediction != "v":
            raise ValueError(
                f"residual = {self.residual}: is for prediction v, not {self.process.prediction!r}"
            )
        for name in ("residual_of_acceleration", "residual_of_contrast"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} = {getattr(self, name)}: must be from 0 to 1")
        if self.residual_of_acceleration and not (
            self.residual and self._blends and self.low_res_shape[0] > 2
        ):
            given = self.low_res_shape and self.low_res_shape[0]
            raise ValueError(
                f"residual_of_acceleration = {self.residual_of_acceleration}: is for residual > 0 "
                "and fill 'blend' of three or more frames to more of them, not "
                f"{self.residual}, {self.fill!r} and {given}"
            )
        for stride in self.frame_strides:
            span = (self.video_shape[0] - 1) * stride + 1
            if span > self.data_shape[0]:
                raise ValueError(
                    f"frame_strides: {stride} takes {span} frames, clips have {self.data_shape[0]}"
                )
        if self.residual_of_contrast and not (self.residual and self._adds_pixels):
            raise ValueError(
                f"residual_of_contrast = {self.residual_of_contrast}: is for residual > 0 where "
                f"pixels are added, not {self.residual}, {self.low_res_shape} to {self.video_shape}"
            )
        if len(self.crop) not in (0, 2, 3):
            raise ValueError(f"crop = {self.crop}: must be (h, w), (f, h, w) or ()")
        shape = self.video_shape[:3]
        if self.crop and any(p > s for p, s in zip(self._crop_shape, shape, strict=True)):
            raise ValueError(f"crop = {self.crop}: clips are {shape} (frames, height, width)")

    @property
    def clip_shape(self) -> tuple[int, int, int, int]:
        return self.data_shape

    @property
    def fps(self) -> float:
        """Frames a second of what the stage makes."""
        stride = self.frame_strides[0] if self.frame_strides else None
        return self.data_fps / (stride or self.data_shape[0] // self.video_shape[0])

    def example(
        self, batch: Batch, key: Key[Array, ""]
    ) -> tuple[Float[Array, "b f h w c"], dict[str, ArrayLike], int]:
        clip, images = self._pixels(batch)
        n, num_images = len(clip), 0 if images is None else images.shape[1]
        stride_key, time_key, noise_key, crop_key = jax.random.split(key, 4)
        cond = self.conditioning(batch)
        x, cond["fps"] = self._clip(clip, stride_key)
        if images is not None:
            images = resize.coarsen(images, (num_images, *self.video_shape[1:3]))
        parts = [x if images is None else jnp.concatenate([x, images], axis=1)]
        if self.low_res_shape is not None:
            low, known = self._low_res(x, images)
            times = losses.low_discrepancy_times(time_key, n) * self.max_augmentation
            logsnr = self.process.schedule(times)
            parts.append(_augmented(low, known, logsnr, noise_key))
            cond["low_res_logsnr"] = logsnr
            if self.residual:
                parts.append(self._residuals(low, num_images))
        if self.crop:
            parts = self._cropped(parts, crop_key, num_images)
        if self.low_res_shape is not None:
            cond["low_res"] = parts[1]
        if self.residual:
            cond["low_res_residual"] = parts[2]
        return parts[0], cond, num_images

    def begin(
        self, cond: Cond, key: Key[Array, ""], *, augmentation: float = 0.0, fps: float = 0.0
    ) -> Cond:
        """The conditioning video `cond["low_res"]`, uint8 (b, f, h, w, c), brought to the stage's
        shape and noised; the frame rate.

        augmentation: α²/σ² of the noise, 0 = no noise. fps: 0 = as trained.
        """
        n = cond["keep"].shape[0]
        told = {**cond, "fps": jnp.full(n, fps or self.fps)}
        if self.low_res_shape is None:
            return told
        if "low_res" not in cond:
            raise ValueError("low_res: this stage refines a video, and none was given")
        level = math.log(augmentation) if augmentation else CLEAN
        logsnr = jnp.full(n, level)
        low = resize.refine(from_uint8(cond["low_res"]), self.video_shape[:3], self.fill)
        noisy = _augmented(low, self._known(), logsnr, key)
        told |= {"low_res": noisy, "low_res_logsnr": logsnr}
        return {**told, "low_res_residual": self._residuals(low, 0)} if self.residual else told

    def raw_output(
        self,
        params: PyTree,
        z: Float[Array, "b f h w c"],
        logsnr: Float[Array, "b"],
        cond: Cond,
        **options: Any,
    ) -> Float[Array, "b f h w c"]:
        output = super().raw_output(params, z, logsnr, cond, **options)
        if not self.residual:
            return output
        return about_low_res(
            output, z, logsnr, cond["low_res"], cond["low_res_logsnr"], cond["low_res_residual"]
        )

    def loss_weight(self, cond: Cond, logsnr: Float[Array, "b"]) -> Float[Array, "b *frames"]:
        """With `residual`, one that weighs the network's own errors alike in every frame, whatever
        is known of it; frames of less than a hundredth of the clip's deviation, as those that a TSR
        stage is given, hardly count."""
        if not self.residual:
            return super().loss_weight(cond, logsnr)
        gain = _gain(logsnr, cond["low_res_logsnr"], cond["low_res_residual"])[1]
        of_frames = jnp.mean(gain**2, axis=(2, 3, 4))
        return 1 / (of_frames + 1e-4 * jnp.mean(of_frames, axis=1, keepdims=True))

    def coarse(self, clips: UInt8[np.ndarray, "n f h w c"]) -> np.ndarray | None:
        if self.low_res_shape is None:
            return None
        return np.asarray(
            to_uint8(resize.coarsen(from_uint8(jnp.asarray(clips)), self.low_res_shape[:3]))
        )

    def abstract_prompts(self, n: int) -> Cond:
        cond = super().abstract_prompts(n)
        if self.low_res_shape is None:
            return cond
        low_res = jax.ShapeDtypeStruct((n, *self.low_res_shape), jnp.uint8)
        return {**cond, "low_res": low_res}

    def _completed(self, cond: Cond, image_frames: int) -> Cond:
        cond = {**super()._completed(cond, image_frames), "fps": jnp.ones(1)}
        if self.low_res_shape is not None:
            frames, *rest = self.video_shape
            cond["low_res"] = jnp.zeros((1, frames + image_frames, *rest))
            cond["low_res_logsnr"] = jnp.zeros(1)
        return cond

    def _clip(
        self, clip: Float[Array, "b f h w c"], key: Key[Array, ""]
    ) -> tuple[Float[Array, "b f2 h2 w2 c"], Float[Array, "b"]]:
        """The data's clips as the stage makes them, and their frames a second."""
        frames, *size = self.video_shape[:3]
        n = len(clip)
        if not self.frame_strides:
            return resize.coarsen(clip, (frames, *size)), jnp.full(n, self.fps)
        stride_key, start_key = jax.random.split(key)
        stride = jax.random.choice(stride_key, jnp.array(self.frame_strides), (n,))
        last = clip.shape[1] - (frames - 1) * stride
        start = jnp.floor(jax.random.uniform(start_key, (n,)) * last).astype(jnp.int32)
        index = start[:, None] + stride[:, None] * jnp.arange(frames)
        taken = jnp.take_along_axis(clip, index[:, :, None, None, None], axis=1)
        return resize.coarsen(taken, (frames, *size)), self.data_fps / stride

    def _known(self) -> Bool[np.ndarray, "f 1 1 1"]:
        """Which frames of the conditioning video are not blank."""
        frames = self.video_shape[0]
        step = frames // self.low_res_shape[0] if self.fill == "blank" else 1
        return (np.arange(frames) % step == 0)[:, None, None, None]

    @property
    def _blends(self) -> bool:
        """Whether frames between two given ones are made of them."""
        if self.low_res_shape is None or self.fill != "blend":
            return False
        return 1 < self.low_res_shape[0] < self.video_shape[0]

    @property
    def _adds_pixels(self) -> bool:
        low = self.low_res_shape
        return low is not None and low[1:3] != self.video_shape[1:3]

    def _residuals(
        self, low: Float[Array, "b f h w c"], num_images: int
    ) -> Float[Array, "b f h w 1"]:
        """Standard deviation of a clip's frames, and images', about their conditions `low`."""
        in_time = resize.ratios(self.video_shape, self.low_res_shape)[0]
        frames = self.video_shape[0]
        given = np.arange(frames) % in_time == 0
        of_given = self.residual if self._adds_pixels else 0.0
        of_clip = np.where(given, of_given, 1.0 if self.fill == "blank" else self.residual)
        of_images = np.full(num_images, 1.0 if in_time > 1 else self.residual)
        deviations = jnp.asarray(np.concatenate([of_clip, of_images]), jnp.float32)
        told = jnp.broadcast_to(deviations[:, None, None, None], (*low.shape[:-1], 1))
        if self.residual_of_contrast:
            told = jnp.sqrt(told**2 + self.residual_of_contrast**2 * _contrast(low))
        if not self.residual_of_acceleration:
            return told
        added = (~given)[:, None, None, None]
        share = self.residual_of_acceleration**2
        further = jnp.where(added, share * _acceleration(low[:, :frames], in_time), 0.0)
        return told.at[:, :frames].set(jnp.sqrt(told[:, :frames] ** 2 + further))

    def _low_res(
        self, x: Float[Array, "b f h w c"], images: Float[Array, "b k h w c"] | None
    ) -> tuple[Float[Array, "b _ h w c"], Bool[np.ndarray, "_ 1 1 1"]]:
        """The conditioning video, without noise, and which of its frames are not blank."""
        coarse = resize.coarsen(x, self.low_res_shape[:3])
        low, known = resize.refine(coarse, self.video_shape[:3], self.fill), self._known()
        if images is None:
            return low, known
        count = images.shape[1]
        in_time = resize.ratios(self.video_shape, self.low_res_shape)[0] > 1
        # An image has no frames that a TSR could be given: its condition is blank.
        coarse = resize.coarsen(images, (count, *self.low_res_shape[1:3]))
        of_images = resize.refine(coarse, (count, *self.video_shape[1:3]))
        known = np.concatenate([known, np.full((count, 1, 1, 1), not in_time)])
        return jnp.concatenate([low, of_images], axis=1), known

    @property
    def _crop_shape(self) -> tuple[int, int, int]:
        return (self.video_shape[0], *self.crop) if len(self.crop) == 2 else self.crop

    def _cropped(self, videos: list[Array], key: Key[Array, ""], num_images: int) -> list[Array]:
        """The same random part of every video, another one for each example; of images, which are
        the last frames, all stay."""
        n = len(videos[0])
        clip = videos[0].shape[1] - num_images
        top_key, left_key, start_key = jax.random.split(key, 3)

        def place(key: Key[Array, ""], whole: int, part: int) -> Array:
            return jax.random.randint(key, (n,), 0, whole - part + 1)

        frames, height, width = self._crop_shape
        start = place(start_key, clip, frames)
        top = place(top_key, self.video_shape[1], height)
        left = place(left_key, self.video_shape[2], width)

        def cut(video: Array, start: Array, top: Array, left: Array) -> Array:
            def part(frames: Array, start: Array, count: int) -> Array:
                size = (count, height, width, video.shape[3])
                return jax.lax.dynamic_slice(frames, (start, top, left, 0), size)

            images = part(video[clip:], jnp.zeros_like(start), num_images)
            return jnp.concatenate([part(video[:clip], start, frames), images])

        return [jax.vmap(cut)(video, start, top, left) for video in videos]


def _acceleration(blended: Float[Array, "b f h w c"], every: int) -> Float[Array, "b f h w 1"]:
    """Mean square near each pixel of the second difference of the given frames, one of `every`: of
    a frame between two of them, the mean of both's, and no more than that of twice the change from
    one to the other, since between equal frames nothing happens; after the last, where nothing is
    known of what comes, of twice the change before it (measured: see benchmarks/RESULTS.md)."""
    given = blended[:, ::every]
    change = given[:, 1:] - given[:, :-1]
    second = change[:, 1:] - change[:, :-1]

    def near(difference: Float[Array, "b f h w c"]) -> Float[Array, "b f h w 1"]:
        squares = jnp.mean(difference**2, axis=-1, keepdims=True)
        return _nearby(squares, NEARBY["acceleration"])

    at, most = near(second), near(2 * change)
    between = jnp.concatenate([at[:, :1], (at[:, 1:] + at[:, :-1]) / 2, at[:, -1:]], axis=1)
    square = jnp.concatenate([jnp.minimum(between, most), most[:, -1:]], axis=1)
    return jnp.repeat(square, every, axis=1)


def _contrast(video: Float[Array, "b f h w c"]) -> Float[Array, "b f h w 1"]:
    """Variance of the pixels near each, mean of the colours."""
    size = NEARBY["contrast"]
    variance = _nearby(video**2, size) - _nearby(video, size) ** 2
    return jnp.mean(jnp.maximum(variance, 0.0), axis=-1, keepdims=True)


def _nearby(values: Float[Array, "b f h w c"], size: int) -> Float[Array, "b f h w c"]:
    """Means of `size` x `size` pixels about each, of those that there are."""
    total, count = (
        jax.lax.reduce_window(of, 0.0, jax.lax.add, (1, 1, size, size, 1), (1, 1, 1, 1, 1), "SAME")
        for of in (values, jnp.ones((1, 1, *values.shape[2:])))
    )
    return total / count


def about_low_res(
    output: Float[Array, "b f h w c"],
    z: Float[Array, "b f h w c"],
    logsnr: Float[Array, "b"],
    low_res: Float[Array, "b f h w c"],
    low_res_logsnr: Float[Array, "b"],
    residual: Float[Array, "b #f #h #w 1"],
) -> Float[Array, "b f h w c"]:
    """v of the video that differs from its best linear estimate by `output` of the estimate's
    standard deviations.

    The estimate is that of z = α x + σ ε and low_res = a y + b ε', were x of variance 1 and x − y,
    of deviation `residual`, independent of all: a · low_res is x but for s² = residual² + b², so

        v̂ = σ (α (1 − s²) z − a · low_res) / (α² s² + σ²) + s / √(α² s² + σ²) · output,

    EDM's preconditioning (Karras et al. 2022, section 5) with what is known beside z. An output of
    0 is the condition itself where it has no noise and z is nothing but noise. Where nothing is
    known (residual 1, or a condition that is nothing but noise) output is v.
    """
    variance, gain = _gain(logsnr, low_res_logsnr, residual)
    alpha, sigma = (expand(c, z.ndim) for c in alpha_sigma(logsnr))
    a, _ = (expand(c, z.ndim) for c in alpha_sigma(low_res_logsnr))
    told = sigma * (alpha * (1 - variance) * z - a * low_res)
    return told / (alpha**2 * variance + sigma**2) + gain * output


def _gain(
    logsnr: Float[Array, "b"],
    low_res_logsnr: Float[Array, "b"],
    residual: Float[Array, "b #f #h #w 1"],
) -> tuple[Float[Array, "b f h w 1"], Float[Array, "b f h w 1"]]:
    """s² of `about_low_res`, and what it multiplies the output by."""
    alpha, sigma = (expand(c, residual.ndim) for c in alpha_sigma(logsnr))
    _, b = (expand(c, residual.ndim) for c in alpha_sigma(low_res_logsnr))
    variance = jnp.minimum(residual**2 + b**2, 1.0)
    return variance, jnp.sqrt(variance / (alpha**2 * variance + sigma**2))


def _augmented(
    low: Float[Array, "b f h w c"],
    known: Bool[np.ndarray, "f 1 1 1"],
    logsnr: Float[Array, "b"],
    key: Key[Array, ""],
) -> Float[Array, "b f h w c"]:
    """α low + σ ε, and blank where nothing is known (Ho et al. 2021, Cascaded diffusion, §4.2)."""
    alpha, sigma = (expand(c, low.ndim) for c in alpha_sigma(logsnr))
    return jnp.where(known, alpha * low + sigma * jax.random.normal(key, low.shape), 0.0)
