"""RIFE (Huang et al. 2022): the frame between two others, from the flow between it and them.

Four blocks, from coarse to fine, refine the flows from the new frame to both given ones, and a mask
that says which of the two to take. The network is that of the published weights "3.9": any time
between the frames, no refinement after the warp.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PyTree

from vdm_jax.models import layers

_CONVOLUTIONS = 8  # of a block, at its resolution
_STRIDE = 4  # of a block's first two convolutions together
_FAR = 32.0  # pixels by which the second block may change both flows before all becomes coarser
_BACK = 3  # rounds in which the flow at the start of a motion is found from that in its middle

Images = Float[Array, "n h w 3"]
Flow = Float[Array, "n h w 2"]


class Motion(NamedTuple):
    """How a new frame is made of two given ones.

    Attributes:
      to_first, to_second: flows (x, y) in pixels: the new frame's pixel at p is the first frame's
        at p + to_first(p).
      mask: the logit of the first frame's share.
      far: whether the second block changed both flows by more than 32 pixels somewhere.
    """

    to_first: Flow
    to_second: Flow
    mask: Float[Array, "n h w 1"]
    far: Bool[Array, ""]


class MotionNetwork(nn.Module):
    """Two images and a time between them to the motion of the image at that time.

    Attributes:
      widths: channels of each block.
      scales: by which each block's inputs are shrunk.
      dtype: of the computation inside the blocks.
    """

    widths: tuple[int, ...] = (192, 128, 96, 64)
    scales: tuple[int, ...] = (8, 4, 2, 1)
    dtype: DTypeLike = jnp.float32

    @property
    def multiple(self) -> int:
        """What must divide height and width."""
        return _STRIDE * max(self.scales)

    @nn.compact
    def __call__(self, first: Images, second: Images, time: float | Float[Array, ""]) -> Motion:
        """first, second: in [0, 1]. time: from 0, the first, to 1. Raises ValueError for a size
        that is no multiple of `multiple`."""
        if any(size % self.multiple for size in first.shape[1:3]):
            raise ValueError(
                f"images of {first.shape[1]} x {first.shape[2]}: must be multiples of "
                f"{self.multiple}"
            )
        times = jnp.full((*first.shape[:3], 1), time, jnp.float32)
        flow, far = jnp.zeros((*first.shape[:3], 4)), jnp.zeros((), bool)
        for i, (width, scale) in enumerate(zip(self.widths, self.scales, strict=True)):
            block = _Block(width, scale, self.dtype, name=f"block_{i}")
            if i == 0:
                flow, mask = block(jnp.concatenate([first, second, times], -1), None)
                continue
            warped = [warp(first, flow[..., :2]), warp(second, flow[..., 2:])]
            change, mask_change = block(jnp.concatenate([*warped, times, mask], -1), flow)
            if i == 1:
                to_first, to_second = jnp.abs(change[..., :2]), jnp.abs(change[..., 2:])
                far = (to_first.max() > _FAR) & (to_second.max() > _FAR)
            flow, mask = flow + change, mask + mask_change
        return Motion(flow[..., :2], flow[..., 2:], mask, far)


class _Block(nn.Module):
    """Flows and mask, or their changes, from inputs that are shrunk by `scale`."""

    width: int
    scale: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "n h w c"], flow: Float[Array, "n h w 4"] | None
    ) -> tuple[Float[Array, "n h w 4"], Float[Array, "n h w 1"]]:
        size = x.shape[1:3]
        small = tuple(side // self.scale for side in size)
        h = _resize(x, small)
        if flow is not None:
            h = jnp.concatenate([h, _resize(flow, small) / self.scale], -1)
        h = self.convolved(h.astype(self.dtype), "in_0", self.width // 2, stride=2)
        h = self.convolved(h, "in_1", self.width, stride=2)
        inner = h
        for i in range(_CONVOLUTIONS):
            inner = self.convolved(inner, str(i), self.width)
        out = nn.ConvTranspose(
            5,
            (4, 4),
            strides=(2, 2),
            padding=((2, 2), (2, 2)),
            dtype=self.dtype,
            kernel_init=_init(None, None, layers.IN, layers.OUT),
            bias_init=layers.named(nn.initializers.zeros, layers.OUT),
            name="out",
        )(h + inner)
        out = _resize(out.astype(jnp.float32), size)
        return out[..., :4] * (2 * self.scale), out[..., 4:]

    @nn.nowrap
    def convolved(self, h: Array, name: str, width: int, stride: int = 1) -> Array:
        """A convolution, and for negative values a learned slope."""
        h = layers.conv(width, dtype=self.dtype, stride=stride, name=f"conv_{name}")(h)
        init = layers.named(nn.initializers.constant(0.25), layers.CHANNELS)
        slope = self.param(f"slope_{name}", init, (width,))
        slope = slope.value if isinstance(slope, nn.meta.AxisMetadata) else slope
        return jnp.where(h >= 0, h, slope.astype(h.dtype) * h)


_init = functools.partial(layers.named, nn.initializers.lecun_normal())


def motion(
    network: MotionNetwork,
    params: PyTree,
    first: Images,
    second: Images,
    time: float | Float[Array, ""] = 0.5,
) -> Motion:
    """The motion of the image at `time` between two images of any size, in [0, 1].

    Where motion is far, all blocks work at half of their resolution, as in the published code;
    there a batch decides together. Images are filled up by their last pixels to a size that the
    network takes.
    """
    coarser = network.clone(scales=tuple(2 * scale for scale in network.scales))
    height, width = first.shape[1:3]
    multiple = coarser.multiple
    tall, wide = (math.ceil(side / multiple) * multiple for side in (height, width))
    missing = ((0, 0), (0, tall - height), (0, wide - width), (0, 0))
    first, second = (jnp.pad(images, missing, mode="edge") for images in (first, second))
    found = network.apply({"params": params}, first, second, time)
    to_first, to_second, mask = jax.lax.cond(
        found.far,
        lambda: coarser.apply({"params": params}, first, second, time)[:3],
        lambda: found[:3],
    )
    cut = (leaf[:, :height, :width] for leaf in (to_first, to_second, mask))
    return Motion(*cut, found.far)


def between(
    network: MotionNetwork,
    params: PyTree,
    first: Images,
    second: Images,
    time: float | Float[Array, ""] = 0.5,
) -> Images:
    """The images at `time` between two, all in [0, 1]. The result of equal images is that image, up
    to the network's flow."""
    found = motion(network, params, first, second, time)
    share = nn.sigmoid(found.mask)
    return share * warp(first, found.to_first) + (1 - share) * warp(second, found.to_second)


def optical_flow(network: MotionNetwork, params: PyTree, first: Images, second: Images) -> Flow:
    """The flow (x, y) in pixels from the first images to the second.

    The network was trained for times between the images, so the flow through the image in the
    middle is taken back along itself to where it starts.
    """
    found = motion(network, params, first, second)
    through = found.to_second - found.to_first
    flow = through
    for _ in range(_BACK):
        flow = warp(through, flow / 2)
    return flow


def warp(images: Float[Array, "n h w c"], flow: Flow) -> Float[Array, "n h w c"]:
    """The images at p + flow(p), by bilinear interpolation; beyond the edge its last pixel."""
    height, width = images.shape[1:3]
    y = jnp.clip(jnp.arange(height, dtype=jnp.float32)[:, None] + flow[..., 1], 0, height - 1)
    x = jnp.clip(jnp.arange(width, dtype=jnp.float32) + flow[..., 0], 0, width - 1)
    top, left = jnp.floor(y), jnp.floor(x)
    down, across = (y - top)[..., None], (x - left)[..., None]
    top, left = top.astype(jnp.int32), left.astype(jnp.int32)
    bottom, right = jnp.minimum(top + 1, height - 1), jnp.minimum(left + 1, width - 1)
    flat = rearrange(images, "n h w c -> n (h w) c")

    def at(row: Array, column: Array) -> Array:
        places = rearrange(row * width + column, "n h w -> n (h w) 1")
        taken = jnp.take_along_axis(flat, places, axis=1)
        return rearrange(taken, "n (h w) c -> n h w c", h=height)

    upper = (1 - across) * at(top, left) + across * at(top, right)
    lower = (1 - across) * at(bottom, left) + across * at(bottom, right)
    return (1 - down) * upper + down * lower


def _resize(x: Array, size: tuple[int, ...]) -> Array:
    shape = (x.shape[0], *size, x.shape[-1])
    return jax.image.resize(x, shape, "bilinear", antialias=False)


def init_params(network: MotionNetwork, key: Array) -> dict[str, Any]:
    """Random parameters."""
    images = jnp.zeros((1, network.multiple, network.multiple, 3))
    return nn.meta.unbox(network.init(key, images, images, 0.5)["params"])
