"""The layers of peers that no network of the library has, composed with a `VideoUNet`.

Attention whose cost is linear in the pixels, a number of heads that does not depend on the width, a
larger first convolution, and a layer over time after it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.blocks.heads import from_heads, to_heads
from vdm_jax.models.blocks.settings import BlockSettings
from vdm_jax.models.blocks.spatial import SpatialAttention
from vdm_jax.models.unet import Blocks, Features, Input, UNet
from vdm_jax.models.video_unet import VideoBlocks, VideoUNet


def mirror(network: VideoUNet, parts: Mapping[str, Any]) -> VideoUNet:
    """`network` with layers of peers.

    Args:
      parts: heads: that number of heads at every level. linear_attention: True for attention over
        space of linear cost, except in the middle. initial_kernel: 7, the size of the first
        convolution. initial_temporal: True for a layer over time after it.
    """
    fields: dict[str, Any] = {}
    if heads := parts.get("heads"):
        fields["settings"] = FixedHeads(**_fields(network.settings), number=heads)
    if parts.get("initial_kernel"):
        fields["input"] = WideInput(**_fields(network.input))
    if parts.get("linear_attention"):
        fields["spatial"] = LinearAttention
    if parts.get("initial_temporal"):
        fields["unet"] = PeerUNet(**_fields(network.unet))
    return network.clone(**fields)


def _fields(part: Any) -> dict[str, Any]:
    return {field.name: getattr(part, field.name) for field in dataclasses.fields(part)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class FixedHeads(BlockSettings):
    """`number` heads of `head_dim` features on any number of channels."""

    number: int

    def heads(self, channels: int) -> tuple[int, int]:
        return self.number, self.head_dim


class WideInput(Input):
    """A first convolution of 7 x 7."""

    kernel: ClassVar[int] = 7


class PeerUNet(UNet):
    """A U-Net with a layer over time after the first convolution, and softmax attention in the
    middle whatever attention the levels have."""

    def __call__(self, h: Features, blocks: VideoBlocks) -> Features:
        peer: Blocks = PeerBlocks(**_fields(blocks))
        return super().__call__(peer.over_time(h, 0, "input"), peer)


class PeerBlocks(VideoBlocks):
    """The blocks of a `VideoUNet` with softmax attention in the middle, without text."""

    def middle(self, h: Features, level: int, name: str) -> Features:
        network = self.network
        softmax = SpatialAttention(network.settings, network.dtype, name=f"{name}_spatial")
        return self.over_time(softmax(h), level, name)


class LinearAttention(nn.Module):
    """Self-attention over the pixels of each frame, plus the input. Starts as the identity.

    Softmax over queries' features and over keys' pixels, then two linear maps, at a cost linear in
    the pixels (Shen et al. 2018, Efficient Attention).
    """

    settings: BlockSettings = BlockSettings()
    dtype: DTypeLike = jnp.float32
    LABEL = "space"

    def attention_flops(self, x) -> int:
        """Operations of the two products for `x` (n, h, w, c), without the projections, and with
        those of values and output if keys gather features."""
        frames, height, width, channels = x.shape
        heads, head_dim = self.settings.heads(channels)
        hidden, pixels = heads * head_dim, height * width
        if self._gathers_features(x):
            return 4 * frames * (pixels + head_dim) * hidden * channels
        return 4 * frames * pixels * head_dim * hidden

    def _gathers_features(self, x) -> bool:
        """Whether keys gather the input's features instead of values.

        That takes fewer operations if a frame has more pixels than channels. If it does not have
        many more, reading a matrix a frame outweighs them.
        """
        return x.shape[1] * x.shape[2] > 2 * x.shape[3]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """`n` is batch times frames."""
        height, channels = x.shape[1], x.shape[-1]
        heads, head_dim = self.settings.heads(channels)
        h = layers.group_norm(channels, self.settings.norm_groups, "norm")(x).astype(self.dtype)
        h = rearrange(h, "n h w c -> n (h w) c")
        q, k = (
            to_heads(heads, head_dim, dtype=self.dtype, name=name)(h) for name in ("query", "key")
        )
        if self._gathers_features(x):
            sizes = (channels, heads, head_dim, self.dtype)
            value = _Projection(*sizes, name="value")()
            out, bias = _Merge(*sizes, name="out")()
            h = gathering_attention(h, q, k, value, out) + bias
        else:
            v = to_heads(heads, head_dim, dtype=self.dtype, name="value")(h)
            h = from_heads(channels, dtype=self.dtype)(linear_attention(q, k, v))
        return x + rearrange(h, "n (h w) c -> n h w c", h=height)


def linear_attention(
    q: Float[Array, "n p heads d"], k: Float[Array, "n p heads d"], v: Float[Array, "n p heads d"]
) -> Float[Array, "n p heads d"]:
    dtype = v.dtype
    q = jax.nn.softmax(q.astype(jnp.float32), axis=-1) / math.sqrt(q.shape[-1])
    k = jax.nn.softmax(k.astype(jnp.float32), axis=1)
    context = jnp.einsum("nphd,nphe->nhde", k.astype(dtype), v)
    return jnp.einsum("nphd,nhde->nphe", q.astype(dtype), context)


class _Projection(nn.Module):
    """The parameters of `to_heads`, not applied."""

    features: int
    heads: int
    head_dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self) -> Float[Array, "c heads d"]:
        init = nn.initializers.lecun_normal(in_axis=0, out_axis=(1, 2))
        names = (layers.IN, layers.HEADS, layers.HEAD_DIM)
        shape = (self.features, self.heads, self.head_dim)
        kernel = self.param("kernel", layers.named(init, *names, dtype=self.dtype), shape)
        return kernel.astype(self.dtype)


class _Merge(nn.Module):
    """The parameters of `from_heads`, not applied."""

    features: int
    heads: int
    head_dim: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self) -> tuple[Float[Array, "heads d c"], Float[Array, "c"]]:
        zeros = nn.initializers.zeros
        names = (layers.HEADS, layers.HEAD_DIM, layers.OUT)
        shape = (self.heads, self.head_dim, self.features)
        bias_init = layers.named(zeros, layers.OUT, dtype=self.dtype)
        kernel = self.param("kernel", layers.named(zeros, *names, dtype=self.dtype), shape)
        bias = self.param("bias", bias_init, (self.features,))
        return kernel.astype(self.dtype), bias.astype(self.dtype)


@jax.custom_vjp
def gathering_attention(
    h: Float[Array, "n p c"],
    q: Float[Array, "n p heads d"],
    k: Float[Array, "n p heads d"],
    value: Float[Array, "c heads d"],
    out: Float[Array, "heads d c"],
) -> Float[Array, "n p c"]:
    """`linear_attention` with the projections to values and from the heads.

    The keys gather the features `h` themselves, and the two projections are applied to the gathered
    features, a matrix a frame: products are associative. Values and the heads' outputs, each wider
    than `h` by heads * d / c, are then not computed for every pixel.
    """
    return _gathering_attention_forward(h, q, k, value, out)[0]


def _gathering_attention_forward(h, q, k, value, out):
    dtype = h.dtype
    q = (jax.nn.softmax(q.astype(jnp.float32), axis=-1) / math.sqrt(q.shape[-1])).astype(dtype)
    k = k.astype(jnp.float32)
    # The gathered features are divided by the sum of the weights instead: they are fewer.
    k = jnp.exp(k - k.max(axis=1, keepdims=True))
    scale = 1.0 / k.sum(axis=1)
    k = k.astype(dtype)
    gathered = jnp.einsum("npc,nphd->nchd", h, k, preferred_element_type=jnp.float32)
    gathered = gathered * scale[:, None]
    context = _through_heads(gathered.astype(dtype), value, out)
    saved = (h, q, k, scale, gathered, value, out, context)
    return jnp.einsum("nphd,nchd->npc", q, context), saved


def _gathering_attention_backward(saved, gradient):
    h, q, k, scale, gathered, value, out, context = saved
    dtype, wide = h.dtype, {"preferred_element_type": jnp.float32}
    grad_context = jnp.einsum("npc,nphd->nchd", gradient, q)
    _, pull = jax.vjp(_through_heads, gathered.astype(dtype), value, out)
    grad_gathered, grad_value, grad_out = pull(grad_context)

    # The gradient of a softmax is p (g - sum(p g)). Here p is sqrt(d) times q.
    weighted = q * jnp.einsum("npc,nchd->nphd", gradient, context, **wide)
    grad_q = weighted - q * (math.sqrt(q.shape[-1]) * weighted.sum(axis=-1, keepdims=True))

    # The sum over pixels of p g follows from the gathered features.
    mean = (gathered * grad_gathered).sum(axis=1) * scale
    scaled = (grad_gathered * scale[:, None]).astype(dtype)
    grad_k = k * (jnp.einsum("npc,nchd->nphd", h, scaled, **wide) - mean[:, None])
    grad_h = jnp.einsum("nphd,nchd->npc", k, scaled)
    return grad_h, grad_q.astype(dtype), grad_k.astype(dtype), grad_value, grad_out


gathering_attention.defvjp(_gathering_attention_forward, _gathering_attention_backward)


def _through_heads(
    gathered: Float[Array, "n c heads d"],
    value: Float[Array, "c heads e"],
    out: Float[Array, "heads e c"],
) -> Float[Array, "n c heads d"]:
    """The gathered features of each head through its values to the output."""
    return jnp.einsum("nhde,hec->nchd", jnp.einsum("nchd,che->nhde", gathered, value), out)
