"""Attention over space, over time, and to text. All are residual and start as the identity."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.models import layers
from vdm_jax.models.ops import blocked_attention

KINDS = ("softmax", "linear")
# Up to how many frames attention over time is written as sums on CPUs.
_FEW_FRAMES = 32
# A logit without weight; finite, as differences of it must be.
_NEVER = -1e30


def _project(features, heads, head_dim, dtype, name, use_bias=False):
    return nn.DenseGeneral(
        (heads, head_dim),
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=layers.named(
            nn.initializers.lecun_normal(), layers.IN, layers.HEADS, layers.HEAD_DIM, dtype=dtype
        ),
        dot_general=layers.linear,
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
        dot_general=layers.linear,
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
        """Operations of the two products for `x` (n, h, w, c), projections not counted.

        Of linear attention that gathers features: the projections of values and output too.
        """
        frames, height, width, channels = x.shape
        hidden, pixels = self.heads * self.head_dim, height * width
        if self._gathers_features(x):
            return 4 * frames * (pixels + self.head_dim) * hidden * channels
        return 4 * frames * pixels * (pixels if self.kind == "softmax" else self.head_dim) * hidden

    def _gathers_features(self, x) -> bool:
        """Whether keys gather the input's features instead of values.

        That takes fewer operations where a frame has more pixels than channels; where it has
        not many more, the reading of a matrix a frame outweighs them.
        """
        return self.kind == "linear" and x.shape[1] * x.shape[2] > 2 * x.shape[3]

    @nn.compact
    def __call__(self, x: Float[Array, "n h w c"]) -> Float[Array, "n h w c"]:
        """`n` is batch times frames."""
        height, channels = x.shape[1], x.shape[-1]
        h = layers.group_norm(channels, self.norm_groups, "norm")(x).astype(self.dtype)
        h = rearrange(h, "n h w c -> n (h w) c")
        if self.kind not in KINDS:
            raise ValueError(f"spatial_attention = {self.kind!r}: allowed are {list(KINDS)}")
        sizes = (channels, self.heads, self.head_dim, self.dtype)
        q, k = (_project(*sizes, name)(h) for name in ("query", "key"))
        if self._gathers_features(x):
            value = _Projection(*sizes, name="value")()
            out, bias = _Merge(*sizes, name="out")()
            h = _gathering_attention(h, q, k, value, out) + bias
        else:
            attend = {"softmax": _softmax_attention, "linear": _linear_attention}[self.kind]
            h = _merge(channels, self.dtype)(attend(q, k, _project(*sizes, "value")(h)))
        return x + rearrange(h, "n (h w) c -> n h w c", h=height)


def _softmax_attention(
    q: Float[Array, "n p heads d"], k: Float[Array, "n p heads d"], v: Float[Array, "n p heads d"]
) -> Float[Array, "n p heads d"]:
    product = jax.nn.dot_product_attention
    return jax.lax.platform_dependent(q, k, v, cpu=blocked_attention.attend, default=product)


def _linear_attention(
    q: Float[Array, "n p heads d"], k: Float[Array, "n p heads d"], v: Float[Array, "n p heads d"]
) -> Float[Array, "n p heads d"]:
    dtype = v.dtype
    q = jax.nn.softmax(q.astype(jnp.float32), axis=-1) / math.sqrt(q.shape[-1])
    k = jax.nn.softmax(k.astype(jnp.float32), axis=1)
    context = jnp.einsum("nphd,nphe->nhde", k.astype(dtype), v)
    return jnp.einsum("nphd,nhde->nphe", q.astype(dtype), context)


class _Projection(nn.Module):
    """The parameters of `_project`, for who applies them himself."""

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
    """The parameters of `_merge`, for who applies them himself."""

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
def _gathering_attention(
    h: Float[Array, "n p c"],
    q: Float[Array, "n p heads d"],
    k: Float[Array, "n p heads d"],
    value: Float[Array, "c heads d"],
    out: Float[Array, "heads d c"],
) -> Float[Array, "n p c"]:
    """`_linear_attention` with the projections to values and from the heads.

    The keys gather the features `h` themselves, and the two projections are applied to what they
    gathered, a matrix a frame: products are associative. Neither values nor the heads' outputs,
    each wider than `h` by heads * d / c, are then made for every pixel.
    """
    return _gathering_attention_forward(h, q, k, value, out)[0]


def _gathering_attention_forward(h, q, k, value, out):
    dtype = h.dtype
    q = (jax.nn.softmax(q.astype(jnp.float32), axis=-1) / math.sqrt(q.shape[-1])).astype(dtype)
    k = k.astype(jnp.float32)
    # Not divided by its sum: what it gathers is, which is smaller.
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
    of_context = jnp.einsum("npc,nphd->nchd", gradient, q)
    _, pull = jax.vjp(_through_heads, gathered.astype(dtype), value, out)
    of_gathered, of_value, of_out = pull(of_context)

    # Of a softmax: p (g - sum(p g)). Here p is sqrt(d) times q.
    weighted = q * jnp.einsum("npc,nchd->nphd", gradient, context, **wide)
    of_q = weighted - q * (math.sqrt(q.shape[-1]) * weighted.sum(axis=-1, keepdims=True))

    # The sum over pixels of p g is known from what the keys gathered.
    mean = (gathered * of_gathered).sum(axis=1) * scale
    scaled = (of_gathered * scale[:, None]).astype(dtype)
    of_k = k * (jnp.einsum("npc,nchd->nphd", h, scaled, **wide) - mean[:, None])
    of_h = jnp.einsum("nphd,nchd->npc", k, scaled)
    return of_h, of_q.astype(dtype), of_k.astype(dtype), of_value, of_out


_gathering_attention.defvjp(_gathering_attention_forward, _gathering_attention_backward)


def _through_heads(
    gathered: Float[Array, "n c heads d"],
    value: Float[Array, "c heads e"],
    out: Float[Array, "heads e c"],
) -> Float[Array, "n c heads d"]:
    """What each head's key gathered, taken to that head's values and on to the output."""
    return jnp.einsum("nhde,hec->nchd", jnp.einsum("nchd,che->nhde", gathered, value), out)


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
        mask = temporal_mask(frames, num_images) if num_images else None
        h = _attend_frames(q, k, v, bias.astype(self.dtype), mask)
        h = self.layout.unfold(_merge(channels, self.dtype)(h), height * width)
        return x + self.layout.fold(rearrange(h, "b (h w) f c -> b f h w c", h=height))


def _attend_frames(
    q: Float[Array, "n f heads d"],
    k: Float[Array, "n f heads d"],
    v: Float[Array, "n f heads d"],
    bias: Float[Array, "heads f f"],
    mask: Bool[Array, "f f"] | None,
) -> Float[Array, "n f heads d"]:
    """Scaled dot-product attention of many short sequences.

    On CPUs the matrices of a few frames are too small for a product of matrices, and bringing
    them into its order costs more than the product: there they are sums of vectors, in the order
    that the projections leave.
    """

    def product(q: Array, k: Array, v: Array, bias: Array) -> Array:
        return jax.nn.dot_product_attention(q, k, v, bias=bias[None], mask=mask)

    def sums(q: Array, k: Array, v: Array, bias: Array) -> Array:
        bias = bias.astype(jnp.float32)
        if mask is not None:
            bias = jnp.where(mask, bias, _NEVER)
        wide = (leaf.astype(jnp.float32) for leaf in (q, k, v))
        return _few_frames_attention(*wide, rearrange(bias, "h i j -> i j h")).astype(v.dtype)

    if q.shape[1] > _FEW_FRAMES:
        return product(q, k, v, bias)
    return jax.lax.platform_dependent(q, k, v, bias, cpu=sums, default=product)


@jax.custom_vjp
def _few_frames_attention(
    q: Float[Array, "n f heads d"],
    k: Float[Array, "n f heads d"],
    v: Float[Array, "n f heads d"],
    bias: Float[Array, "f f heads"],
) -> Float[Array, "n f heads d"]:
    return _few_frames_forward(q, k, v, bias)[0]


def _few_frames_forward(q, k, v, bias):
    logits = _pairs(q, k) / math.sqrt(q.shape[-1]) + bias
    weights = jax.nn.softmax(logits, axis=2)
    return _mix(weights, v), (q, k, v, weights)


def _few_frames_backward(saved, gradient):
    q, k, v, weights = saved
    of_v = _mix(jnp.swapaxes(weights, 1, 2), gradient)
    weighted = weights * _pairs(gradient, v)
    of_bias = weighted - weights * weighted.sum(axis=2, keepdims=True)
    of_logits = of_bias / math.sqrt(q.shape[-1])
    of_q, of_k = _mix(of_logits, k), _mix(jnp.swapaxes(of_logits, 1, 2), q)
    return of_q, of_k, of_v, of_bias.sum(axis=0)


_few_frames_attention.defvjp(_few_frames_forward, _few_frames_backward)


def _pairs(
    a: Float[Array, "n f heads d"], b: Float[Array, "n f heads d"]
) -> Float[Array, "n f f heads"]:
    """The inner product of each frame of `a` with each of `b`."""
    return (a[:, :, None] * b[:, None]).sum(axis=-1)


def _mix(
    weights: Float[Array, "n f f heads"], x: Float[Array, "n f heads d"]
) -> Float[Array, "n f heads d"]:
    """For each frame the sum of the frames of `x`, each times its weight."""
    # Written out: XLA's CPU backend then vectorises over the features.
    frames = range(x.shape[1])
    return sum(weights[:, :, frame, :, None] * x[:, None, frame] for frame in frames)


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
