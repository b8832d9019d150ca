"""Refinement of a low-resolution video: the network predicts what the video adds to it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vdm_jax.diffusion import preconditioning
from vdm_jax.stage import resize
from vdm_jax.stage.protocols import Cond

# Side in pixels of the squares in which acceleration and contrast are measured.
ACCELERATION_SIDE, CONTRAST_SIDE = 7, 5
# Share of a clip's mean variance that is added to each frame's in the loss: frames of less than a
# hundredth of the clip's deviation, such as those that a TSR stage is given, hardly count.
_LEAST_VARIANCE = 1e-4


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plain:
    """The raw output is `Process.prediction`, and every example counts alike."""

    def output(
        self,
        raw: Float[Array, "b f h w c"],
        z: Float[Array, "b f h w c"],
        logsnr: Float[Array, "b"],
        cond: Cond,
    ) -> Float[Array, "b f h w c"]:
        return raw

    def weight(self, logsnr: Float[Array, "b"], cond: Cond) -> Float[Array, "b"]:
        return jnp.ones_like(logsnr)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Refinement:
    """The network predicts the difference from the best linear estimate of z and the low-resolution
    video (`preconditioning.about_estimate`). Prediction must be v.

    Without this parameterisation a network first has to learn to copy its conditioning video. Small
    networks never copy it exactly.

    Attributes:
      shape, low_res_shape: (f, h, w, c) of the refined and of the low-resolution video.
      fill: how the low-resolution video gets the refined video's frames, see `resize.refine`.
      deviation: standard deviation of new pixels and frames about the resized low-resolution
        video.
      acceleration: with `fill = "blend"`, a further deviation of new frames, as a share of the
        given frames' second difference in time nearby (root mean square), at most of twice their
        change.
        Blending two frames is almost exact in regions that are still or in uniform motion, and
        wrong where motion changes.
      contrast: where pixels are added, a further deviation as a share of the standard deviation of
        the pixels nearby. Bilinear enlargement is almost exact in flat regions, and wrong at edges.
    """

    shape: tuple[int, int, int, int]
    low_res_shape: tuple[int, int, int, int]
    fill: str = "repeat"
    deviation: float
    acceleration: float = 0.0
    contrast: float = 0.0

    def __post_init__(self):
        names = {"residual": self.deviation, "residual_of_acceleration": self.acceleration}
        for name, value in {**names, "residual_of_contrast": self.contrast}.items():
            if not 0 <= value <= 1:
                raise ValueError(f"{name} = {value}: must be from 0 to 1")
        given = self.low_res_shape[0]
        blends = self.fill == "blend" and 2 < given < self.shape[0]
        if self.acceleration and not blends:
            raise ValueError(
                f"residual_of_acceleration = {self.acceleration}: needs fill 'blend' of three or "
                f"more frames to more of them, not {self.fill!r} and {given} to {self.shape[0]}"
            )
        if self.contrast and not self._adds_pixels:
            raise ValueError(
                f"residual_of_contrast = {self.contrast}: needs a stage that adds pixels, not "
                f"{self.low_res_shape} to {self.shape}"
            )

    @property
    def _adds_pixels(self) -> bool:
        return self.low_res_shape[1:3] != self.shape[1:3]

    @property
    def reach(self) -> int:
        """How many pixels of the resized video around each its deviation depends on."""
        contrast = CONTRAST_SIDE // 2 if self.contrast else 0
        return max(contrast, ACCELERATION_SIDE // 2 if self.acceleration else 0)

    def deviations(
        self, low: Float[Array, "b f h w c"], num_images: int
    ) -> Float[Array, "b f h w 1"]:
        """Standard deviation of a clip's frames, and images', about the resized video `low`."""
        in_time = resize.ratios(self.shape, self.low_res_shape)[0]
        frames = low.shape[1] - num_images  # of a whole clip, or of a window of it
        given = np.arange(frames) % in_time == 0
        given_deviation = self.deviation if self._adds_pixels else 0.0
        new_deviation = 1.0 if self.fill == "blank" else self.deviation
        clip = np.where(given, given_deviation, new_deviation)
        images = np.full(num_images, 1.0 if in_time > 1 else self.deviation)
        by_frame = jnp.asarray(np.concatenate([clip, images]), jnp.float32)
        total = jnp.broadcast_to(by_frame[:, None, None, None], (*low.shape[:-1], 1))
        if self.contrast:
            total = jnp.sqrt(total**2 + self.contrast**2 * _contrast(low))
        if not self.acceleration:
            return total
        new = (~given)[:, None, None, None]
        further = self.acceleration**2 * _acceleration(low[:, :frames], in_time)
        further = jnp.where(new, further, 0.0)
        return total.at[:, :frames].set(jnp.sqrt(total[:, :frames] ** 2 + further))

    def output(
        self,
        raw: Float[Array, "b f h w c"],
        z: Float[Array, "b f h w c"],
        logsnr: Float[Array, "b"],
        cond: Cond,
    ) -> Float[Array, "b f h w c"]:
        """See `Parametrisation`."""
        return preconditioning.about_estimate(
            raw, z, logsnr, cond["low_res"], cond["low_res_logsnr"], cond["low_res_residual"]
        )

    def weight(self, logsnr: Float[Array, "b"], cond: Cond) -> Float[Array, "b f"]:
        """Weighs the network's own errors alike in every frame, however well it is known."""
        deviation = cond["low_res_residual"]
        gain = preconditioning.estimate_gain(logsnr, cond["low_res_logsnr"], deviation)[1]
        by_frame = jnp.mean(gain**2, axis=(2, 3, 4))
        return 1 / (by_frame + _LEAST_VARIANCE * jnp.mean(by_frame, axis=1, keepdims=True))


def _acceleration(blended: Float[Array, "b f h w c"], every: int) -> Float[Array, "b f h w 1"]:
    """Mean square near each pixel of the second difference in time of the given frames, which are
    one of `every`.

    A frame between two given ones gets the mean of both, at most that of twice the change from one
    to the other, since nothing happens between equal frames. Frames after the last given one get
    that of twice the change before it.
    """
    given = blended[:, ::every]
    change = given[:, 1:] - given[:, :-1]
    second = change[:, 1:] - change[:, :-1]

    def near(difference: Float[Array, "b f h w c"]) -> Float[Array, "b f h w 1"]:
        squares = jnp.mean(difference**2, axis=-1, keepdims=True)
        return _local_mean(squares, ACCELERATION_SIDE)

    at, most = near(second), near(2 * change)
    between = jnp.concatenate([at[:, :1], (at[:, 1:] + at[:, :-1]) / 2, at[:, -1:]], axis=1)
    square = jnp.concatenate([jnp.minimum(between, most), most[:, -1:]], axis=1)
    return jnp.repeat(square, every, axis=1)


def _contrast(video: Float[Array, "b f h w c"]) -> Float[Array, "b f h w 1"]:
    """Variance of the pixels near each, averaged over the colours."""
    mean, square = (_local_mean(values, CONTRAST_SIDE) for values in (video, video**2))
    return jnp.mean(jnp.maximum(square - mean**2, 0.0), axis=-1, keepdims=True)


def _local_mean(values: Float[Array, "b f h w c"], side: int) -> Float[Array, "b f h w c"]:
    """Means over squares of `side` pixels about each, over the pixels that exist."""
    window, strides = (1, 1, side, side, 1), (1, 1, 1, 1, 1)

    total = jax.lax.reduce_window(values, 0.0, jax.lax.add, window, strides, "SAME")
    # Counted here: XLA folds windows' sums of ones one by one, seconds of compilation a stage.
    at = [np.arange(size) for size in values.shape[2:4]]
    rows, columns = (
        np.minimum(along + side // 2 + 1, len(along)) - np.maximum(along - side // 2, 0)
        for along in at
    )
    return total / jnp.asarray(rows[:, None, None] * columns[:, None], values.dtype)
