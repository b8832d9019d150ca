"""The block of a video transformer (Peebles & Xie 2022; Wan Team 2025, section 4.2): attention
among the tokens of a clip, attention to a text, and an MLP, modulated by the noise level."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vdm_jax.models import layers
from vdm_jax.models.blocks.rotary import rotate
from vdm_jax.models.blocks.settings import TransformerSettings
from vdm_jax.models.ops import attention, product

Tokens = Float[Array, "b n c"]
Heads = Float[Array, "b n heads d"]
MODULATIONS = 6  # vectors of a block: shift, scale and gate of its attention and of its MLP


class TokenContext(NamedTuple):
    """What all blocks take beside the tokens.

    A row may hold several samples one behind the other (packed), each of which is a segment.

    Attributes:
      modulation: float32, for each noise level of a row the vectors that blocks add their own to.
      rotation: cosines and sines of the tokens' positions, see `rotary.rotation`.
      text: tokens of the text; None = there is no text.
      levels: the noise level of each token, a number into `modulation`; None = the only one.
      segments, text_segments: a token attends to tokens and text of its own segment; None = all.
    """

    modulation: Float[Array, "b levels 6 c"]
    rotation: tuple[Float[Array, "#b n e"], Float[Array, "#b n e"]]
    text: Float[Array, "b l c"] | None = None
    levels: Int[Array, "b n"] | None = None
    segments: Int[Array, "b n"] | None = None
    text_segments: Int[Array, "b l"] | None = None


class TokenBlock(nn.Module):
    """Self-attention and an MLP on modulated normalised tokens, gated, and between the two
    attention to the text; each plus its input.

    The modulation is that of the noise level, the same for all blocks, plus a learned bias of this
    block (adaLN-single, Chen et al. 2023, section 2.3).
    """

    settings: TransformerSettings = TransformerSettings()
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens, context: TokenContext) -> Tokens:
        settings, dtype = self.settings, self.dtype
        bias = modulation_bias(MODULATIONS, settings.width, self)
        parts = [level(context.modulation[..., i, :] + bias[..., i, :], context) for i in range(6)]
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        h = modulate(x, shift, scale, settings.epsilon).astype(dtype)
        h = SelfAttention(settings, dtype, name="attention_self")(h, context)
        x = (x + gate * h).astype(dtype)
        if context.text is not None:
            h = x
            if settings.text_norm:
                h = layer_norm(settings.epsilon, "norm_text")(x).astype(dtype)
            x = x + TextAttention(settings, dtype, name="attention_text")(h, context)
        h = modulate(x, mlp_shift, mlp_scale, settings.epsilon).astype(dtype)
        h = MLP(settings.hidden, dtype, name="mlp")(h)
        return (x + mlp_gate * h).astype(dtype)


def modulation_bias(vectors: int, width: int, module: nn.Module) -> Float[Array, "1 vectors width"]:
    """The learned vectors of `module` that are added to those of the noise level, float32."""
    init = layers.named(nn.initializers.normal(width**-0.5), None, None, layers.CHANNELS)
    return jnp.asarray(module.param("modulation", init, (1, vectors, width)), jnp.float32)


def level(vectors: Float[Array, "b levels c"], context: TokenContext) -> Float[Array, "b #n c"]:
    """For each token the vector of its noise level; one for all where there is one level."""
    if context.levels is None:
        return vectors
    return jnp.take_along_axis(vectors, context.levels[..., None], axis=1)


def modulate(
    x: Tokens, shift: Float[Array, "b #n c"], scale: Float[Array, "b #n c"], epsilon: float
) -> Tokens:
    """Each token normalised over its features, times 1 + `scale`, plus `shift`, in float32."""
    norm = nn.LayerNorm(epsilon, dtype=jnp.float32, use_scale=False, use_bias=False)
    return norm(x) * (1 + scale) + shift


def layer_norm(epsilon: float, name: str) -> nn.LayerNorm:
    """Layer normalisation in float32 with a learned scale and bias."""
    return nn.LayerNorm(
        epsilon,
        dtype=jnp.float32,
        scale_init=layers.named(nn.initializers.ones, layers.CHANNELS),
        bias_init=layers.named(nn.initializers.zeros, layers.CHANNELS),
        name=name,
    )


class SelfAttention(nn.Module):
    """Attention among the tokens of a row, with rotary positions."""

    settings: TransformerSettings = TransformerSettings()
    dtype: DTypeLike = jnp.float32
    LABEL = "space-time"

    def attention_flops(self, x, context) -> int:
        """Operations of the two products for `x` (b, n, c), without the projections."""
        return 4 * x.shape[0] * x.shape[1] ** 2 * x.shape[2]

    @nn.compact
    def __call__(self, x: Tokens, context: TokenContext) -> Tokens:
        q, k = (
            rotate(projected(x, name, self.settings, self.dtype), *context.rotation)
            for name in ("query", "key")
        )
        v = projected(x, "value", self.settings, self.dtype)
        if context.segments is None:
            attended = attention.attend_pixels(q, k, v)
        else:
            segments = context.segments
            attended = attention.attend_segments(q, k, v, segments, segments)
        return merged(attended, x.shape[-1], self.dtype)


class TextAttention(nn.Module):
    """Attention of tokens to the text. All tokens of a text have weight."""

    settings: TransformerSettings = TransformerSettings()
    dtype: DTypeLike = jnp.float32
    LABEL = "text"

    def attention_flops(self, x, context) -> int:
        """Operations of the two products for `x` (b, n, c), without the projections."""
        return 4 * x.shape[0] * x.shape[1] * context.text.shape[1] * x.shape[2]

    @nn.compact
    def __call__(self, x: Tokens, context: TokenContext) -> Tokens:
        q = projected(x, "query", self.settings, self.dtype)
        k, v = (projected(context.text, n, self.settings, self.dtype) for n in ("key", "value"))
        if context.segments is None:
            attended = attention.attend_pixels(q, k, v)
        else:
            attended = attention.attend_segments(q, k, v, context.segments, context.text_segments)
        return merged(attended, x.shape[-1], self.dtype)


def projected(x: Tokens, name: str, settings: TransformerSettings, dtype: DTypeLike) -> Heads:
    """Queries, keys or values of tokens, the first two normalised; a part of the calling module."""
    names = (layers.IN, layers.HEADS, layers.HEAD_DIM)
    h = nn.DenseGeneral(
        (settings.heads, settings.head_dim),
        dtype=dtype,
        kernel_init=layers.named(nn.initializers.xavier_uniform(), *names, dtype=dtype),
        bias_init=layers.named(nn.initializers.zeros, layers.HEADS, layers.HEAD_DIM, dtype=dtype),
        dot_general=product.linear,
        name=name,
    )(x)
    if name == "value" or settings.qk_norm == "none":
        return h
    return HeadNorm(settings.qk_norm == "width", settings.epsilon, name=f"{name}_norm")(h)


def merged(h: Heads, features: int, dtype: DTypeLike) -> Tokens:
    """The heads' results mapped back to tokens; a part of the calling module."""
    names = (layers.HEADS, layers.HEAD_DIM, layers.OUT)
    return nn.DenseGeneral(
        features,
        axis=(-2, -1),
        dtype=dtype,
        kernel_init=layers.named(nn.initializers.xavier_uniform(), *names, dtype=dtype),
        bias_init=layers.named(nn.initializers.zeros, layers.OUT, dtype=dtype),
        dot_general=product.linear,
        name="out",
    )(h)


class HeadNorm(nn.Module):
    """Heads over the root mean square of their features, or of all heads' together, times a scale
    a feature, in float32 (Zhang & Sennrich 2019; Dehghani et al. 2023, section 2).

    Attributes:
      together: whether all heads are normalised as one vector.
    """

    together: bool
    epsilon: float

    @nn.compact
    def __call__(self, h: Heads) -> Heads:
        sizes = h.shape[-2:] if self.together else h.shape[-1:]
        features = sizes[0] * sizes[-1] if self.together else sizes[0]
        init = layers.named(nn.initializers.ones, layers.CHANNELS)
        scale = self.param("scale", init, (features,)).astype(jnp.float32).reshape(sizes)
        x = h.astype(jnp.float32)
        axes = tuple(range(-len(sizes), 0))
        mean_square = jnp.mean(jnp.square(x), axis=axes, keepdims=True)
        return (x / jnp.sqrt(mean_square + self.epsilon) * scale).astype(h.dtype)


class MLP(nn.Module):
    """A linear map, the tanh form of GELU, and a linear map back."""

    hidden: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Tokens) -> Tokens:
        features, dtype = x.shape[-1], self.dtype
        first, second = (layers.IN, layers.HIDDEN), (layers.HIDDEN, layers.OUT)
        h = layers.dense(self.hidden, dtype=dtype, axes=first, name="linear_in")(x)
        h = nn.gelu(h, approximate=True)
        return layers.dense(features, dtype=dtype, axes=second, name="linear_out")(h)
