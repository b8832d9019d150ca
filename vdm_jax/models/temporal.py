"""Layers that mix frames other than by attention: convolutions over time, and what Lumiere adds to
an image network to make it one of space and time (Bar-Tal et al. 2024, section 3.1).

All leave the last `num_images` frames, independent images, as they are, and a clip does not see
them.
"""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import attention, layers


class FrameConvolution(nn.Module):
    """Convolution over three frames at each pixel; beyond the clip's ends are zeros.

    Its three taps are one matrix product, whose outputs are shifted by a frame and added: nothing
    is rearranged. init: zeros, random, or identity.
    """

    features: int
    init: str = "random"
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w _"]:
        axes = layers.IN, None, layers.OUT
        taps = nn.DenseGeneral(
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
    # DenseGeneral asks for a matrix, whose columns are the taps' outputs, one tap after the other.
    channels = shape[0]
    none = jnp.zeros((channels, channels), dtype)
    return jnp.concatenate([none, jnp.eye(channels, dtype=dtype), none], axis=1).reshape(shape)


_INITIALISERS = {
    "zeros": nn.initializers.zeros,
    "random": nn.initializers.lecun_normal(),
    "identity": _identity,
}


def _shifted(x: Float[Array, "b f h w c"], by: int) -> Float[Array, "b f h w c"]:
    """Every frame's features moved on by one frame (1) or back (-1), zeros coming in."""
    padded = jnp.pad(x, [(0, 0), (max(by, 0), max(-by, 0)), (0, 0), (0, 0), (0, 0)])
    return padded[:, :-1] if by > 0 else padded[:, 1:]


def of_clip(
    layout: layers.Layout,
    x: Float[Array, "bf *rest"],
    frames: int,
    num_images: int,
    change: Callable[[Array], Array],
    images: Callable[[Array], Array] = lambda images: images,
) -> Float[Array, "bg *rest2"]:
    """`change` of the clips (b, f, ...) in a folded array, `images` of the images after them."""
    x = layout.unfold(x, frames)
    clip = frames - num_images
    parts = [change(x[:, :clip])] if clip else []
    if num_images:
        parts.append(images(x[:, clip:]))
    return layout.fold(jnp.concatenate(parts, axis=1))


class TemporalConvolution(nn.Module):
    """norm, swish, convolution over three frames at each pixel; plus the input.

    The convolution starts at zero, so that the layer starts as the identity. It is what the
    super-resolution models of a cascade mix frames by.
    """

    norm_groups: int = 32
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE

    @nn.compact
    def __call__(
        self, x: Float[Array, "bf h w c"], frames: int, num_images: int = 0
    ) -> Float[Array, "bf h w c"]:
        """`x` has batch and frames folded, `frames` of them a clip, images included."""
        h = layers.group_norm(x.shape[-1], self.norm_groups, "norm")(x)
        h = nn.swish(h).astype(self.dtype)
        mix = FrameConvolution(x.shape[-1], init="zeros", dtype=self.dtype, name="conv")
        return x + of_clip(self.layout, h, frames, num_images, mix, jnp.zeros_like)


def _told(
    block: "FactorisedConvolution | TemporalAttentionBlock",
    h: Float[Array, "bf h w c"],
    condition: Float[Array, "bf d"],
) -> Float[Array, "bf h w c"]:
    """`h` scaled and shifted by what `block` makes of the conditions, at first not at all."""
    modulation = layers.dense(
        2 * h.shape[-1],
        dtype=block.dtype,
        zero=True,
        axes=(layers.IN, layers.HIDDEN),
        name="scale_shift",
    )(nn.swish(condition))
    scale, shift = jnp.split(modulation.astype(jnp.float32)[:, None, None, :], 2, axis=-1)
    return (h * (1.0 + scale) + shift).astype(h.dtype)


class FactorisedConvolution(nn.Module):
    """norm, swish, convolution over space, norm, scale and shift by the condition, swish,
    convolution over three frames, and a projection; plus the input. The projection starts at zero:
    the layer starts as the identity.

    Lumiere's convolution-based block, less the image layers before it (figure 4b), which alone are
    told the condition there.
    """

    norm_groups: int = 32
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "bf h w c"],
        frames: int,
        condition: Float[Array, "bf d"],
        num_images: int = 0,
    ) -> Float[Array, "bf h w c"]:
        """`x` has batch and frames folded, `frames` of them a clip, images included; `condition`
        is each frame's."""
        channels = x.shape[-1]
        h = nn.swish(layers.group_norm(channels, self.norm_groups, "norm_space")(x))
        h = layers.conv(channels, dtype=self.dtype, name="space")(h.astype(self.dtype))
        h = layers.group_norm(channels, self.norm_groups, "norm_time")(h)
        h = nn.swish(_told(self, h, condition))
        over_time = FrameConvolution(channels, dtype=self.dtype, name="time")
        project = layers.dense(channels, dtype=self.dtype, zero=True, name="projection")

        def mix(clip: Array) -> Array:
            return project(over_time(clip))

        h = h.astype(self.dtype)
        return x + of_clip(self.layout, h, frames, num_images, mix, jnp.zeros_like)


class TemporalAttentionBlock(nn.Module):
    """Scale and shift by the condition, several layers of attention over the frames, one after the
    other, and a projection that starts at zero; plus the input.

    Lumiere's attention-based block (figure 4c).
    """

    heads: int
    head_dim: int
    depth: int = 1
    norm_groups: int = 32
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "bf h w c"],
        frames: int,
        condition: Float[Array, "bf d"],
        num_images: int = 0,
    ) -> Float[Array, "bf h w c"]:
        """`x` has batch and frames folded, `frames` of them a clip, images included; `condition`
        is each frame's."""
        channels, h = x.shape[-1], _told(self, x, condition)
        for number in range(self.depth):
            layer = attention.TemporalAttention(
                self.heads,
                self.head_dim,
                self.norm_groups,
                self.dtype,
                self.layout,
                name=f"attention_{number}",
            )
            h = layer(h, frames, num_images)
        project = layers.dense(channels, dtype=self.dtype, zero=True, name="projection")

        def mix(clip: Array) -> Array:
            return project(clip.astype(self.dtype))

        return x + of_clip(self.layout, h, frames, num_images, mix, jnp.zeros_like)


class TemporalResize(nn.Module):
    """Halves or doubles the clip's frames, keeping every second or repeating each.

    Before that, or after it, is a convolution over three frames that starts as the identity.
    """

    doubles: bool
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE

    @nn.compact
    def __call__(
        self, x: Float[Array, "bf h w c"], frames: int, num_images: int = 0
    ) -> Float[Array, "bg h w c"]:
        """`x` has batch and frames folded, `frames` of them a clip, images included."""
        mix = FrameConvolution(x.shape[-1], init="identity", dtype=self.dtype, name="conv")

        def resized(clip: Array) -> Array:
            return mix(jnp.repeat(clip, 2, axis=1)) if self.doubles else mix(clip)[:, ::2]

        return of_clip(self.layout, x, frames, num_images, resized)
