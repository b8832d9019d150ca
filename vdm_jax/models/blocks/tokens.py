"""The block of a video transformer (Peebles & Xie 2022; Wan Team 2025, section 4.2): attention
among the tokens of a clip, attention to a text, and an MLP, modulated by the noise level."""

from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from vdm_jax.models import layers
from vdm_jax.models.blocks.positions import rotate
from vdm_jax.models.blocks.settings import TransformerSettings
from vdm_jax.models.ops import attention, product

Tokens = Float[Array, "b n c"]
Heads = Float[Array, "b n heads d"]
MODULATIONS = 6  # vectors of a block: shift, scale and gate of its attention and of its MLP


class TokenContext(NamedTuple):
    """What all blocks take beside the tokens.

    A row may hold several samples one behind the other (packed), each of which is a segment.

    Attributes:
      vector: float32, of each noise level of a row.
      text: tokens of the text; None = blocks have no attention to a text.
      modulation: float32, for each noise level the vectors that blocks add their own to; None =
        blocks make them of `vector`.
      rotation: cosines and sines of the tokens' positions, see `positions.rotation`; None = no
        rotary positions.
      levels: the noise level of each token, a number into `modulation`; None = the only one.
      segments, text_segments: a token attends to tokens and text of its own segment; None = all.
    """

    vector: Float[Array, "b levels c"]
    text: Float[Array, "b l c"] | None
    modulation: Float[Array, "b levels 6 c"] | None = None
    rotation: tuple[Float[Array, "#b n e"], Float[Array, "#b n e"]] | None = None
    levels: Int[Array, "b n"] | None = None
    segments: Int[Array, "b n"] | None = None
    text_segments: Int[Array, "b l"] | None = None


class TokenBlock(nn.Module):
    """Self-attention and an MLP on modulated normalised tokens, gated, and between the two
    attention to the text; each plus its input.

    Attributes:
      over: what a token attends to: "all" tokens of its row, those of its frame, "space", or those
        of its place in all frames, "time".
      text: whether there is attention to the text.
      layout: spreads the tokens of a row over devices, where all attend to one another.
    """

    settings: TransformerSettings = TransformerSettings()
    dtype: DTypeLike = jnp.float32
    over: str = "all"
    text: bool = True
    layout: layers.Layout = layers.ANYWHERE
    STATIC = (3,)  # `frames`, for `layers.remat`

    @nn.compact
    def __call__(self, x: Tokens, context: TokenContext, frames: int = 1) -> Tokens:
        """frames: of the clips whose tokens `x` holds; of no effect with "all"."""
        settings, dtype = self.settings, self.dtype
        vectors = modulation(MODULATIONS, context, settings, self)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = vectors
        h = modulate(x, shift, scale, settings.epsilon).astype(dtype)
        attend = SelfAttention(settings, dtype, self.over, self.layout, name="attention_self")
        x = (x + gate * attend(h, context, frames)).astype(dtype)
        if self.text and context.text is not None:
            h = x
            if settings.text_norm:
                h = layer_norm(settings.epsilon, "norm_text")(x).astype(dtype)
            x = x + TextAttention(settings, dtype, name="attention_text")(h, context)
        h = modulate(x, mlp_shift, mlp_scale, settings.epsilon).astype(dtype)
        h = MLP(settings.hidden, dtype, name="mlp")(h)
        return (x + mlp_gate * h).astype(dtype)


class BlockPair(nn.Module):
    """A block over the tokens of each frame, then one over those of each place."""

    settings: TransformerSettings = TransformerSettings()
    dtype: DTypeLike = jnp.float32
    STATIC = TokenBlock.STATIC

    @nn.compact
    def __call__(
        self,
        x: Tokens,
        context: TokenContext,
        frames: int,
        between: Float[Array, "#b n c"] | None = None,
    ) -> Tokens:
        """between: is added to the tokens between the two."""
        settings, dtype = self.settings, self.dtype
        x = TokenBlock(settings, dtype, "space", name="space")(x, context, frames)
        if between is not None:
            x = (x + between).astype(dtype)
        return TokenBlock(settings, dtype, "time", text=False, name="time")(x, context, frames)


def modulation(
    vectors: int, context: TokenContext, settings: TransformerSettings, module: nn.Module
) -> list[Float[Array, "b #n c"]]:
    """The vectors that modulate tokens; their parameters belong to `module`."""
    width = settings.width
    if settings.modulation == "block":
        zero = layers.dense(vectors * width, dtype=jnp.float32, zero=True, name="modulation")
        found = zero(nn.swish(context.vector)).reshape((*context.vector.shape[:2], vectors, width))
    else:
        init = layers.named(nn.initializers.normal(width**-0.5), None, None, layers.CHANNELS)
        bias = module.param("modulation", init, (1, vectors, width))
        # All vectors of a block, or for the output the noise level's own.
        shared = context.modulation if vectors == MODULATIONS else context.vector[..., None, :]
        found = shared + jnp.asarray(bias, jnp.float32)
    return [level(found[..., number, :], context) for number in range(vectors)]


def level(vectors: Float[Array, "b levels c"], context: TokenContext) -> Float[Array, "b #n c"]:
    """For each token the vector of its noise level; one for all where there is one level."""
    if context.levels is None:
        return vectors
    return jnp.take_along_axis(vectors, context.levels[..., None], axis=1)


def modulate(
    x: Tokens, shift: Float[Array, "b #n c"], scale: Float[Array, "b #n c"], epsilon: float
) -> Tokens:
    """Each token normalised over its features, times 1 + `scale`, plus `shift`, in float32."""
    norm = layers.LayerNorm(epsilon, dtype=jnp.float32, use_scale=False, use_bias=False)
    return norm(x) * (1 + scale) + shift


def layer_norm(epsilon: float, name: str) -> nn.LayerNorm:
    """Layer normalisation in float32 with a learned scale and bias."""
    return layers.LayerNorm(
        epsilon,
        dtype=jnp.float32,
        scale_init=layers.named(nn.initializers.ones, layers.CHANNELS),
        bias_init=layers.named(nn.initializers.zeros, layers.CHANNELS),
        name=name,
    )


class SelfAttention(nn.Module):
    """Attention among the tokens of a row, with rotary positions where there are any.

    Attributes:
      over, layout: see `TokenBlock`.
    """

    settings: TransformerSettings = TransformerSettings()
    dtype: DTypeLike = jnp.float32
    over: str = "all"
    layout: layers.Layout = layers.ANYWHERE

    @property
    def LABEL(self) -> str:
        return "space-time" if self.over == "all" else self.over

    def attention_flops(self, x, context, frames) -> int:
        """Operations of the two products for `x` (b, n, c), without the projections."""
        batch, tokens, features = x.shape
        attended = {"all": tokens, "space": tokens // frames, "time": frames}[self.over]
        return 4 * batch * tokens * attended * features

    @nn.compact
    def __call__(self, x: Tokens, context: TokenContext, frames: int) -> Tokens:
        heads = [projected(x, n, self.settings, self.dtype) for n in ("query", "key", "value")]
        if context.rotation is not None:
            heads[:2] = [rotate(one, *context.rotation) for one in heads[:2]]
        if self.over == "all":
            attended = self.layout.attend(*heads, context.segments)
            return merged(attended, x.shape[-1], self.dtype)
        axes = _FOLDED[self.over]

        def folded(x: Array) -> Array:
            """Tokens that attend to one another as rows of their own."""
            return rearrange(x, f"b (f p) ... -> {axes} ...", f=frames)

        # A frame is of one sample, so it needs no mask.
        segments = None if self.over == "space" else context.segments
        if segments is not None:
            segments = (folded(segments),) * 2
        attended = attention.attend_tokens(*map(folded, heads), segments)
        attended = rearrange(attended, f"{axes} ... -> b (f p) ...", f=frames, b=len(x))
        return merged(attended, x.shape[-1], self.dtype)


_FOLDED = {"space": "(b f) p", "time": "(b p) f"}


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
        segments = context.segments, context.text_segments
        attended = attention.attend_tokens(q, k, v, None if segments[0] is None else segments)
        return merged(attended, x.shape[-1], self.dtype)


def projected(x: Tokens, name: str, settings: TransformerSettings, dtype: DTypeLike) -> Heads:
    """Queries, keys or values of tokens, the first two normalised; a part of the calling module."""
    names = (layers.IN, layers.HEADS, layers.HEAD_DIM)
    h = layers.DenseGeneral(
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
    return layers.DenseGeneral(
        features,
        axis=(-2, -1),
        dtype=dtype,
        kernel_init=layers.named(nn.initializers.xavier_uniform(), *names, dtype=dtype),
        bias_init=layers.named(nn.initializers.zeros, layers.OUT, dtype=dtype),
        dot_general=product.linear,
        name="out",
    )(h)


class HeadNorm(layers.GivenParams, nn.Module):
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
