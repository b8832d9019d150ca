"""Blocks that mix the frames of a clip: attention, and a convolution over three frames.

All leave the last `num_images` frames, which are independent images, as they are. No frame of the
clip depends on the images.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.models import layers
from vdm_jax.models.blocks.heads import from_heads, to_heads
from vdm_jax.models.blocks.settings import BlockSettings
from vdm_jax.models.ops import attention


class TemporalAttention(nn.Module):
    """Self-attention over the frames at each pixel, with relative position bias, plus the input.
    Starts as the identity.

    The attention matrix is masked to the identity for images, as in VDM's joint training: each
    image attends to itself only, and no frame of the clip attends to it.
    """

    settings: BlockSettings = BlockSettings()
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE
    LABEL = "time"

    def attention_flops(self, x, frames, *_) -> int:
        """Operations of the two products for `x` (b f, h, w, c), without the projections."""
        heads, head_dim = self.settings.heads(x.shape[-1])
        return 4 * math.prod(x.shape[:3]) * frames * heads * head_dim

    @nn.compact
    def __call__(
        self, x: Float[Array, "bf h w c"], frames: int, num_images: int = 0
    ) -> Float[Array, "bf h w c"]:
        """`x` has batch and frames folded. `frames` counts a clip's frames and its images."""
        _, height, width, channels = x.shape
        heads, head_dim = self.settings.heads(channels)
        h = layers.group_norm(channels, self.settings.norm_groups, "norm")(x).astype(self.dtype)
        # Where devices hold parts of the frames, they hold parts of the pixels between the folds.
        h = self.layout.fold(rearrange(self.layout.unfold(h, frames), "b f h w c -> b (h w) f c"))
        q, k, v = (
            to_heads(heads, head_dim, dtype=self.dtype, name=name)(h)
            for name in ("query", "key", "value")
        )
        bias = RelativePositionBias(heads, name="position_bias")(frames)
        mask = temporal_mask(frames, num_images) if num_images else None
        h = attention.attend_frames(q, k, v, bias.astype(self.dtype), mask)
        h = self.layout.unfold(from_heads(channels, dtype=self.dtype)(h), height * width)
        return x + self.layout.fold(rearrange(h, "b (h w) f c -> b f h w c", h=height))


class RelativePositionBias(layers.GivenParams, nn.Module):
    """A learned bias for each head and each bucket of the distance between two frames.

    The buckets are those of Raffel et al. 2020 (T5), half of them for each sign. They are exact for
    near frames and logarithmic up to `max_distance`; all larger distances share one bucket. Clips
    may therefore have any number of frames.
    """

    heads: int
    num_buckets: int = 32
    max_distance: int = 32

    @nn.compact
    def __call__(self, frames: int) -> Float[Array, "heads f f"]:
        table = self.param(
            "table",
            layers.named(nn.initializers.normal(0.02), None, layers.HEADS),
            (self.num_buckets, self.heads),
        )
        position = jnp.arange(frames)
        distance = position[None, :] - position[:, None]
        buckets = relative_position_bucket(
            distance, num_buckets=self.num_buckets, max_distance=self.max_distance
        )
        return rearrange(table[buckets], "q k heads -> heads q k")


def relative_position_bucket(
    distance: Int[Array, "*n"], *, num_buckets: int, max_distance: int
) -> Int[Array, "*n"]:
    """The bucket of a signed distance, in [0, num_buckets): see `RelativePositionBias`."""
    half = num_buckets // 2
    exact = half // 2
    size = jnp.abs(distance)
    log_ratio = jnp.log(jnp.maximum(size, 1) / exact) / math.log(max_distance / exact)
    large = exact + (log_ratio * (half - exact)).astype(jnp.int32)
    bucket = jnp.where(size < exact, size, jnp.minimum(large, half - 1))
    return bucket + jnp.where(distance > 0, half, 0)


def temporal_mask(frames: int, num_images: int) -> Bool[Array, "f f"]:
    """True where a frame may attend to another: clip frames to each other, images to themselves."""
    in_clip = jnp.arange(frames) < frames - num_images
    return (in_clip[:, None] & in_clip[None, :]) | jnp.eye(frames, dtype=bool)


class TemporalConvolution(nn.Module):
    """norm, swish, convolution over three frames at each pixel; plus the input.

    The convolution starts at zero, so that the block starts as the identity.
    """

    settings: BlockSettings = BlockSettings()
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE

    @nn.compact
    def __call__(
        self, x: Float[Array, "bf h w c"], frames: int, num_images: int = 0
    ) -> Float[Array, "bf h w c"]:
        """`x` has batch and frames folded. `frames` counts a clip's frames and its images."""
        h = layers.group_norm(x.shape[-1], self.settings.norm_groups, "norm")(x)
        h = nn.swish(h).astype(self.dtype)
        mix = FrameConvolution(x.shape[-1], init="zeros", dtype=self.dtype, name="conv")
        return x + apply_to_clip(self.layout, h, frames, num_images, mix, jnp.zeros_like)


class FrameConvolution(layers.GivenParams, nn.Module):
    """Convolution over three frames at each pixel, zeros beyond the ends of the clip.

    Its three taps are one matrix product, whose outputs are shifted by a frame and added, so that
    nothing is rearranged. init: zeros, random, or identity.
    """

    features: int
    init: str = "random"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w _"]:
        axes = layers.IN, None, layers.OUT
        taps = layers.DenseGeneral(
            (3, self.features),
            use_bias=False,
            dtype=self.dtype,
            kernel_init=layers.named(_INITIALISERS[self.init], *axes, dtype=self.dtype),
            name="taps",
        )(x)
        zeros = layers.named(nn.initializers.zeros, layers.OUT, dtype=self.dtype)
        bias = self.param("bias", zeros, (self.features,))
        before, here, after = (taps[..., tap, :] for tap in range(3))
        return here + bias.astype(self.dtype) + _shifted(before, 1) + _shifted(after, -1)


def _identity(key, shape, dtype=jnp.float32) -> Array:
    # DenseGeneral asks for a matrix whose columns are the taps' outputs, one tap after the other.
    channels = shape[0]
    zeros = jnp.zeros((channels, channels), dtype)
    return jnp.concatenate([zeros, jnp.eye(channels, dtype=dtype), zeros], axis=1).reshape(shape)


_INITIALISERS = {
    "zeros": nn.initializers.zeros,
    "random": nn.initializers.lecun_normal(),
    "identity": _identity,
}


def _shifted(x: Float[Array, "b f h w c"], by: int) -> Float[Array, "b f h w c"]:
    """The frames moved one later (1) or one earlier (-1), zeros at the end that becomes free."""
    padded = jnp.pad(x, [(0, 0), (max(by, 0), max(-by, 0)), (0, 0), (0, 0), (0, 0)])
    return padded[:, :-1] if by > 0 else padded[:, 1:]


def apply_to_clip(
    layout: layers.Layout,
    x: Float[Array, "bf *rest"],
    frames: int,
    num_images: int,
    change: Callable[[Array], Array],
    images: Callable[[Array], Array] = lambda images: images,
) -> Float[Array, "bg *rest2"]:
    """Applies `change` to the clips (b, f, ...) of a folded array and `images` to its images.

    `frames` counts a clip's frames and, after them, the `num_images` images.
    """
    x = layout.unfold(x, frames)
    clip = frames - num_images
    parts = [change(x[:, :clip])] if clip else []
    if num_images:
        parts.append(images(x[:, clip:]))
    return layout.fold(jnp.concatenate(parts, axis=1))
