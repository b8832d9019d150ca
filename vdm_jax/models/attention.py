"""Attention over space, over time, and to text. All are residual and start as the identity."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.models import layers


def _project(features, heads, head_dim, dtype, name, use_bias=False):
    return nn.DenseGeneral(
        (heads, head_dim),
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=layers.named(
            nn.initializers.lecun_normal(), layers.IN, layers.HEADS, layers.HEAD_DIM, dtype=dtype
        ),
        name=name,
    )


def _merge(features, dtype, name="out"):
    return nn.DenseGeneral(
        features,
        axis=(-2, -1),
        dtype=dtype,
        kernel_init=layers.named(
            nn.initializers.zeros, layers.HEADS, layers.HEAD_DIM, layers.OUT, dtype=dtype
        ),
        bias_init=layers.named(nn.initializers.zeros, layers.OUT, dtype=dtype),
        name=name,
    )


class SpatialAttention(nn.Module):
    """Self-attention over the pixels of each frame.

    kind softmax: scaled dot-product attention. kind linear: softmax over queries' features and
    over keys' pixels, then two linear maps, cost linear in the pixels (Shen et al. 2018,
    Efficient Attention).
    """

    heads: int
    head_dim: int
    kind: str = "softmax"
    norm_groups: int = 32
    dtype: DTypeLike = jnp.float32
    LABEL = "space"

    def attention_flops(self, x) -> int:
        """Operations of the two products for `x` (n, h, w, c), projections not counted."""
        pixels = x.shape[1] * x.shape[2]
        width = pixels if self.kind == "softmax" else self.head_dim
        return 4 * x.shape[0] * pixels * width * self.heads * self.head_dim

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """`n` is batch times frames."""
        height, channels = x.shape[1], x.shape[-1]
        h = layers.group_norm(channels, self.norm_groups, "norm")(x).astype(self.dtype)
        h = rearrange(h, "n h w c -> n (h w) c")
        q, k, v = (
            _project(channels, self.heads, self.head_dim, self.dtype, name)(h)
            for name in ("query", "key", "value")
        )
        attend = {"softmax": jax.nn.dot_product_attention, "linear": _linear_attention}
        if self.kind not in attend:
            raise ValueError(f"spatial_attention = {self.kind!r}: allowed are {list(attend)}")
        h = _merge(channels, self.dtype)(attend[self.kind](q, k, v))
        return x + rearrange(h, "n (h w) c -> n h w c", h=height)


def _linear_attention(
    q: Float[Array, "n p heads d"], k: Float[Array, "n p heads d"], v: Float[Array, "n p heads d"]
) -> Float[Array, "n p heads d"]:
    dtype = v.dtype
    q = jax.nn.softmax(q.astype(jnp.float32), axis=-1) / math.sqrt(q.shape[-1])
    k = jax.nn.softmax(k.astype(jnp.float32), axis=1)
    context = jnp.einsum("nphd,nphe->nhde", k.astype(dtype), v)
    return jnp.einsum("nphd,nhde->nphe", q.astype(dtype), context)


class RelativePositionBias(nn.Module):
    """A learned bias a head and a bucket of the distance between two frames.

    Buckets are those of Raffel et al. 2020 (T5): one a sign, exact for near frames and
    logarithmic up to `max_distance`, beyond which all distances share one. Any number of frames
    can therefore be asked for.
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


class TemporalAttention(nn.Module):
    """Self-attention over the frames at each pixel, with relative position bias.

    Of the `f` frames the last `num_images` are independent images: each attends to itself only
    and no clip frame attends to it (VDM, joint training: the attention matrix is masked to the
    identity there).
    """

    heads: int
    head_dim: int
    norm_groups: int = 32
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE
    LABEL = "time"

    def attention_flops(self, x, frames, *_) -> int:
        """Operations of the two products for `x` (b f, h, w, c), projections not counted."""
        return 4 * math.prod(x.shape[:3]) * frames * self.heads * self.head_dim

    @nn.compact
    def __call__(
        self, x: Float[Array, "bf h w c"], frames: int, num_images: int = 0
    ) -> Float[Array, "bf h w c"]:
        """`x` has batch and frames folded, `frames` of them a clip, images included."""
        _, height, width, channels = x.shape
        h = layers.group_norm(channels, self.norm_groups, "norm")(x).astype(self.dtype)
        # Where frames are spread over devices, pixels are instead between the two folds.
        h = self.layout.fold(rearrange(self.layout.unfold(h, frames), "b f h w c -> b (h w) f c"))
        q, k, v = (
            _project(channels, self.heads, self.head_dim, self.dtype, name)(h)
            for name in ("query", "key", "value")
        )
        bias = RelativePositionBias(self.heads, name="position_bias")(frames)
        mask = temporal_mask(frames, num_images)[None, None] if num_images else None
        h = jax.nn.dot_product_attention(q, k, v, bias=bias[None].astype(self.dtype), mask=mask)
        h = self.layout.unfold(_merge(channels, self.dtype)(h), height * width)
        return x + self.layout.fold(rearrange(h, "b (h w) f c -> b f h w c", h=height))


def temporal_mask(frames: int, num_images: int) -> Bool[Array, "f f"]:
    """Who may attend to whom: the clip's frames to each other, each image to itself."""
    in_clip = jnp.arange(frames) < frames - num_images
    return (in_clip[:, None] & in_clip[None, :]) | jnp.eye(frames, dtype=bool)


class CrossAttention(nn.Module):
    """Attention from the pixels of a clip to the tokens of its text, and of each of the
    `num_images` appended images to the tokens of its own."""

    heads: int
    head_dim: int
    norm_groups: int = 32
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE
    LABEL = "text"

    def attention_flops(self, x, tokens, *_) -> int:
        """Operations of the two products for `x` (b f, h, w, c), projections not counted."""
        return 4 * math.prod(x.shape[:3]) * tokens.shape[-2] * self.heads * self.head_dim

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "bf h w c"],
        tokens: Float[Array, "b items l d"],
        token_mask: Bool[Array, "b items l"],
        num_images: int = 0,
    ) -> Float[Array, "bf h w c"]:
        """`items` is 1 + num_images: the clip's text first. Masked-out tokens have no weight."""
        batch, height, channels = len(tokens), x.shape[1], x.shape[-1]
        frames = x.shape[0] // batch - num_images
        h = layers.group_norm(channels, self.norm_groups, "norm")(x).astype(self.dtype)
        q = _project(channels, self.heads, self.head_dim, self.dtype, "query")(
            rearrange(self.layout.unfold(h, x.shape[0] // batch), "b f h w c -> b f (h w) c")
        )
        tokens = nn.LayerNorm(
            dtype=jnp.float32,
            scale_init=layers.named(nn.initializers.ones, layers.CHANNELS),
            bias_init=layers.named(nn.initializers.zeros, layers.CHANNELS),
            name="token_norm",
        )(tokens).astype(self.dtype)
        k, v = (
            _project(channels, self.heads, self.head_dim, self.dtype, name)(tokens)
            for name in ("key", "value")
        )
        parts = []
        if frames:
            # The clip's frames share one set of keys, so they are one long row of queries.
            clip = jax.nn.dot_product_attention(
                rearrange(q[:, :frames], "b f p n d -> b (f p) n d"),
                k[:, 0],
                v[:, 0],
                mask=token_mask[:, 0, None, None, :],
            )
            parts.append(rearrange(clip, "b (f p) n d -> b f p n d", f=frames))
        if num_images:
            q, k, v, mask = (
                rearrange(a, "b i ... -> (b i) ...")
                for a in (q[:, frames:], k[:, 1:], v[:, 1:], token_mask[:, 1:])
            )
            images = jax.nn.dot_product_attention(q, k, v, mask=mask[:, None, None, :])
            parts.append(rearrange(images, "(b i) p n d -> b i p n d", b=batch))
        h = _merge(channels, self.dtype)(jnp.concatenate(parts, axis=1))
        return x + self.layout.fold(rearrange(h, "b f (h w) c -> b f h w c", h=height))


MODULES = (SpatialAttention, TemporalAttention, CrossAttention)
