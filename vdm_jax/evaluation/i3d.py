"""I3D, the network behind FVD: from videos to 400 logits and 1024 pooled features.

Inflated 3D ConvNet, RGB stream, trained on Kinetics-400 (Carreira & Zisserman 2017, section 2.5 and
figure 3). FVD (Unterthiner et al. 2018) takes its logits on clips of 224 x 224 in [-1, 1]. Its
weights are in `i3d_weights.py`.

Every convolution and pooling is padded as TensorFlow's 'SAME' says: an axis of n gives ceil(n / s),
and where what is missing is odd, the larger part comes last.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, PyTree, UInt8

from vdm_jax.evaluation.i3d_weights import weights_hash

SIZE = 224  # of a frame, in height and width
CLASSES = 400
MIN_FRAMES = 9  # strides of 8 in time leave two of them, which the last pooling needs
PADDED_FRAMES = 16
TEMPORAL_PADDING = (
    f"clips of fewer than {MIN_FRAMES} frames show each frame ceil({PADDED_FRAMES} / frames) times"
)
FILTERS = {
    "bilinear": "bilinear, no antialiasing, corners aligned at the top left (TF1 resize_bilinear)",
    "bilinear_antialias": "bilinear, antialiased, pixel centres aligned",
    "bicubic": "bicubic (Keys, a = -0.5), antialiased, pixel centres aligned, clipped",
}

_PRECISION = jax.lax.Precision.HIGHEST  # float32 also where the default is less
_EPSILON = 1e-3  # of the batch normalisations
# Channels of a block: 1x1; 1x1, 3x3; 1x1, 3x3; 1x1 after pooling.
_MIXED = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32),
    "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64),
    "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64),
    "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128),
    "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}


def same_padding(size: int, kernel: int, stride: int) -> tuple[int, int]:
    """What TensorFlow's 'SAME' adds before and after an axis of `size`."""
    missing = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
    return missing // 2, missing - missing // 2


def conv3d(
    x: Float[Array, "b f h w c"], kernel: Float[Array, "kf kh kw c out"], stride: int = 1
) -> Float[Array, "b f2 h2 w2 out"]:
    """A 3D convolution, 'SAME'.

    Computed as one of 2D: the frames that the kernel reads lie beside each other as channels. The
    sum is the same, and XLA's CPU backend has a fast convolution for two axes only: 10 times as
    fast for 7x7x7, 1.5 to 2 times for 3x3x3.
    """
    taps, *spatial, _, _ = kernel.shape
    if kernel.shape[:3] == (1, 1, 1):
        return jnp.matmul(x, kernel[0, 0, 0], precision=_PRECISION)
    frames = math.ceil(x.shape[1] / stride)
    x = jnp.pad(x, ((0, 0), same_padding(x.shape[1], taps, stride), (0, 0), (0, 0), (0, 0)))
    last = (frames - 1) * stride + 1
    x = jnp.concatenate([x[:, tap : tap + last : stride] for tap in range(taps)], axis=-1)
    y = jax.lax.conv_general_dilated(
        rearrange(x, "b f h w c -> (b f) h w c"),
        rearrange(kernel, "t h w c out -> h w (t c) out"),
        (stride, stride),
        [same_padding(n, k, stride) for n, k in zip(x.shape[2:4], spatial, strict=True)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision=_PRECISION,
    )
    return rearrange(y, "(b f) h w c -> b f h w c", f=frames)


def max_pool(
    x: Float[Array, "b f h w c"], window: tuple[int, int, int], strides: tuple[int, int, int]
) -> Float[Array, "b f2 h2 w2 c"]:
    """The largest of each window over frames, height and width, 'SAME'.

    Along one axis after the other: the same, and up to 30 times as fast on CPUs.
    """
    for axis, (size, stride) in enumerate(zip(window, strides, strict=True), start=1):
        if size > 1:
            shape, steps, padding = [1] * 5, [1] * 5, [(0, 0)] * 5
            shape[axis], steps[axis] = size, stride
            padding[axis] = same_padding(x.shape[axis], size, stride)
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, shape, steps, padding)
    return x


class Unit(nn.Module):
    """Convolution, batch normalisation by stored statistics, ReLU."""

    features: int
    kernel: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f2 h2 w2 out"]:
        shape = (*(self.kernel,) * 3, x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.he_normal(), shape)
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        mean = self.param("mean", nn.initializers.zeros, (self.features,))
        var = self.param("var", nn.initializers.ones, (self.features,))
        scale = jax.lax.rsqrt(var + _EPSILON)
        return nn.relu(conv3d(x, kernel * scale, self.stride) + (bias - mean * scale))


class Mixed(nn.Module):
    """The Inception block: four branches beside each other, and their channels in a row."""

    features: Sequence[int]

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w out"]:
        f = self.features
        first = Unit(f[0], 1, name="Branch_0_Conv3d_0a_1x1")(x)
        second = Unit(f[1], 1, name="Branch_1_Conv3d_0a_1x1")(x)
        second = Unit(f[2], 3, name="Branch_1_Conv3d_0b_3x3")(second)
        third = Unit(f[3], 1, name="Branch_2_Conv3d_0a_1x1")(x)
        third = Unit(f[4], 3, name="Branch_2_Conv3d_0b_3x3")(third)
        fourth = max_pool(x, (3, 3, 3), (1, 1, 1))
        fourth = Unit(f[5], 1, name="Branch_3_Conv3d_0b_1x1")(fourth)
        return jnp.concatenate([first, second, third, fourth], axis=-1)


class I3D(nn.Module):
    """The RGB stream of I3D, for inference; the names of its parts are those of its source."""

    @nn.compact
    def __call__(
        self, video: Float[Array, "b f h w 3"]
    ) -> tuple[Float[Array, "b 400"], Float[Array, "b 1024"]]:
        """Logits before the softmax, and the pooled features that they are linear in.

        video: in [-1, 1], 224 x 224 as trained; other sizes of at least 32 are pooled over all
        their pixels. Raises ValueError for fewer than `MIN_FRAMES` frames.
        """
        if video.shape[1] < MIN_FRAMES:
            raise ValueError(f"{video.shape[1]} frames: must be at least {MIN_FRAMES}")
        x = Unit(64, 7, 2, name="Conv3d_1a_7x7")(video)
        x = max_pool(x, (1, 3, 3), (1, 2, 2))
        x = Unit(64, 1, name="Conv3d_2b_1x1")(x)
        x = Unit(192, 3, name="Conv3d_2c_3x3")(x)
        x = max_pool(x, (1, 3, 3), (1, 2, 2))
        for name, features in _MIXED.items():
            if name == "Mixed_4b":
                x = max_pool(x, (3, 3, 3), (2, 2, 2))
            if name == "Mixed_5b":
                x = max_pool(x, (2, 2, 2), (2, 2, 2))
            x = Mixed(features, name=name)(x)
        # Averages of 2 x 7 x 7 at every place in time, and their mean, which the source takes
        # after the last, linear layer.
        x = x.mean((2, 3))
        features = ((x[:, :-1] + x[:, 1:]) / 2).mean(1)
        logits = nn.Dense(CLASSES, precision=_PRECISION, name="Logits_Conv3d_0c_1x1")(features)
        return logits, features


def resize(
    video: UInt8[Array, "*n h w c"], filter: str = "bilinear", size: int = SIZE
) -> Float[Array, "*n {size} {size} c"]:
    """Frames of `size` x `size` in [-1, 1], float32, whatever their aspect.

    filter: of `FILTERS`. "bilinear" is what FVD's authors use: pixel i of n is read at i h / n,
    between its two neighbours. Where frames are enlarged, antialiasing changes nothing, and
    "bilinear_antialias" differs by reading at (i + 1/2) h / n - 1/2.
    """
    if filter not in FILTERS:
        raise ValueError(f"filter = {filter!r}: must be one of {', '.join(FILTERS)}")
    x = video.astype(jnp.float32)
    if video.shape[-3:-1] != (size, size):
        if filter == "bilinear":
            x = _interpolate(_interpolate(x, size, axis=-2), size, axis=-3)
        else:
            shape = (*x.shape[:-3], size, size, x.shape[-1])
            method = "linear" if filter == "bilinear_antialias" else "cubic"
            x = jnp.clip(jax.image.resize(x, shape, method, antialias=True), 0.0, 255.0)
    return 2.0 * x / 255.0 - 1.0


def _interpolate(x: Array, size: int, axis: int) -> Array:
    place = np.arange(size, dtype=np.float32) * np.float32(x.shape[axis] / size)
    before = np.floor(place).astype(np.int32)
    after = np.minimum(before + 1, x.shape[axis] - 1)
    part = (place - before).reshape(-1, *[1] * (-axis - 1))
    low, high = jnp.take(x, before, axis), jnp.take(x, after, axis)
    return low + (high - low) * part


def pad_frames(video: Float[Array, "b f h w c"]) -> Float[Array, "b f2 h w c"]:
    """Clips that are too short for the network, slowed down by a whole factor.

    `TEMPORAL_PADDING` is the rule. The motion stays whole and in its order, without a cut, as in a
    film of a lower frame rate.
    """
    frames = video.shape[1]
    if frames >= MIN_FRAMES:
        return video
    return jnp.repeat(video, math.ceil(PADDED_FRAMES / frames), axis=1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class I3DFeatures:
    """Videos to logits and features: one compiled function, fed in batches of one size.

    A clip's logits do not depend on the batch that it is in but for the rounding of sums.

    Attributes:
      params: see `i3d_weights.load_weights`.
      filter, size: of `resize`; at another size than 224 distances are no FVD.
      batch_size: clips computed at once, rounded up to divide by the devices; the last batch is
        padded and cut.
      devices: that a batch is spread over; None = all of this process.
    """

    params: PyTree
    filter: str = "bilinear"
    size: int = SIZE
    batch_size: int = 4
    devices: Sequence[jax.Device] | None = None

    def __post_init__(self):
        if self.filter not in FILTERS:
            raise ValueError(f"filter = {self.filter!r}: must be one of {', '.join(FILTERS)}")
        for name, least in (("size", 32), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} = {getattr(self, name)}: must be at least {least}")

    @functools.cached_property
    def protocol(self) -> dict[str, Any]:
        """What the numbers depend on, as JSON: to be told with every distance made of them."""
        return {
            "network": "I3D RGB, Kinetics-400",
            "weights": weights_hash(self.params),
            "resize": f"{self.size} x {self.size}, {FILTERS[self.filter]}",
            "range": [-1, 1],
            "temporal_padding": TEMPORAL_PADDING,
        }

    def stream(
        self, videos: UInt8[np.ndarray, "n f h w c"] | Iterable[UInt8[np.ndarray, "m f h w c"]]
    ) -> Iterator[tuple[Float[np.ndarray, "k 400"], Float[np.ndarray, "k 1024"]]]:
        """Yields logits and features of the videos, in order, a batch at a time.

        videos: RGB, one array or several, of any lengths, that are looked at one by one.
        Raises ValueError for anything but uint8 `n f h w 3`.
        """
        size = self.batch_size
        if hasattr(videos, "shape"):
            size, videos = min(size, max(len(videos), 1)), [videos]
        size += -size % self._batch.mesh.size
        for batch in _batches(videos, size):
            count = len(batch)
            padding = [(0, size - count)] + [(0, 0)] * 4
            batch = jax.device_put(np.pad(batch, padding, mode="edge"), self._batch)
            yield tuple(np.asarray(out)[:count] for out in self._compiled(self._placed, batch))

    def __call__(
        self, videos: UInt8[np.ndarray, "n f h w c"] | Iterable[UInt8[np.ndarray, "m f h w c"]]
    ) -> tuple[Float[np.ndarray, "n 400"], Float[np.ndarray, "n 1024"]]:
        """Logits and features of all `videos`; see `stream`."""
        logits, features = [], []
        for some_logits, some_features in self.stream(videos):
            logits.append(some_logits)
            features.append(some_features)
        if not logits:
            raise ValueError("no videos")
        return np.concatenate(logits), np.concatenate(features)

    @functools.cached_property
    def _batch(self) -> NamedSharding:
        devices = jax.local_devices() if self.devices is None else list(self.devices)
        return NamedSharding(Mesh(np.asarray(devices), ("clips",)), PartitionSpec("clips"))

    @functools.cached_property
    def _everywhere(self) -> NamedSharding:
        return NamedSharding(self._batch.mesh, PartitionSpec())

    @functools.cached_property
    def _placed(self) -> PyTree:
        return jax.device_put(self.params, self._everywhere)

    @functools.cached_property
    def _compiled(self):
        def apply(params: PyTree, videos: Array) -> tuple[Array, Array]:
            video = pad_frames(resize(videos, self.filter, self.size))
            return I3D().apply({"params": params}, video)

        return jax.jit(
            apply, in_shardings=(self._everywhere, self._batch), out_shardings=self._batch
        )


def _batches(videos: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The videos in arrays of `size`, the last of what is left."""
    rest = None
    for some in videos:
        some = np.asarray(some)
        if some.dtype != np.uint8 or some.ndim != 5 or some.shape[-1] != 3 or not some.shape[1]:
            raise ValueError(
                f"videos {some.dtype}{list(some.shape)}: must be uint8 [n, f, h, w, 3]"
            )
        if rest is not None and some.shape[1:] != rest.shape[1:]:
            found = f"{list(some.shape[1:])} after {list(rest.shape[1:])}"
            raise ValueError(f"videos of {found}: must be of one shape")
        rest = some if rest is None or not len(rest) else np.concatenate([rest, some])
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]
    if rest is not None and len(rest):
        yield rest
