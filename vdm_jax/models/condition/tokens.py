"""Tokens that pixels attend to: of a text, whose mean is in the vector of each frame, and of an
embedding."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from einops import rearrange
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.condition.base import Embedded, EmbeddingModule, Inputs, lookup, or_null


@dataclasses.dataclass(frozen=True, kw_only=True)
class Words:
    """A text as numbers of words.

    Attributes:
      vocab_size: number of words.
      max_length: tokens of a text.
      kernel: see `TextStates`.
    """

    vocab_size: int
    max_length: int
    kernel: int = 0
    PER_FRAME: ClassVar[bool] = False
    keys: ClassVar[tuple[str, ...]] = ("tokens", "token_mask")

    def __call__(self, module: EmbeddingModule, inputs: Inputs) -> Embedded:
        ids = inputs.items("tokens")
        init = layers.named(nn.initializers.normal(0.02), None, layers.CHANNELS)
        positions = module.param("word_positions", init, (self.max_length, module.dim))
        tokens = lookup(module, self.vocab_size, "words")(ids) + positions.astype(module.dtype)
        return _embed_tokens(module, inputs, tokens, self.kernel)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TextStates:
    """A text as states of a frozen text encoder. A state holds the position of its token already.

    Attributes:
      width: features of a state.
      kernel: size of a convolution over tokens, so that each token of a phrase holds the whole
        phrase, as in "red circle moving left"; 0 = no convolution.
    """

    width: int
    kernel: int = 0
    PER_FRAME: ClassVar[bool] = False
    keys: ClassVar[tuple[str, ...]] = ("text_embeddings", "token_mask")

    def __call__(self, module: EmbeddingModule, inputs: Inputs) -> Embedded:
        states = inputs.items("text_embeddings")
        if states.shape[-1] != self.width:
            raise ValueError(
                f"cond: text_embeddings {states.shape} must have text_width = {self.width} "
                "last, the width of the text encoder that the network was made for"
            )
        dense = layers.dense(module.dim, dtype=module.dtype, name="text_states")
        return _embed_tokens(module, inputs, dense(states.astype(module.dtype)), self.kernel)


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmbeddingTokens:
    """An embedding, such as that of an image, as tokens and as a vector (unCLIP, Ramesh et al.
    2022, section 2.1). A network of a text attends to the tokens in the text's place.

    The vector starts at zero.

    Attributes:
      key: of the condition, (b, 1, d).
      count: tokens that it is mapped to.
      width: features of each.
    """

    key: str
    count: int = 4
    width: int
    PER_FRAME: ClassVar[bool] = False

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)

    def __call__(self, module: EmbeddingModule, inputs: Inputs) -> Embedded:
        embedding = rearrange(inputs.items(self.key), "b items 1 d -> b items d")
        embedding = embedding.astype(module.dtype)
        tokens = layers.dense(self.count * self.width, dtype=module.dtype, name="embedding_tokens")
        vector = layers.dense(module.dim, dtype=module.dtype, zero=True, name="embedding_vector")
        return Embedded(
            vector=vector(embedding),
            tokens=rearrange(tokens(embedding), "b items (l d) -> b items l d", l=self.count),
        )


def _embed_tokens(
    module: EmbeddingModule, inputs: Inputs, tokens: Float[Array, "b items l dim"], kernel: int
) -> Embedded:
    mask = inputs.items("token_mask")
    if kernel:
        lecun, axes = nn.initializers.lecun_normal(), (None, layers.IN, layers.OUT)
        phrases = layers.Conv(
            module.dim,
            (kernel,),
            dtype=module.dtype,
            kernel_init=layers.named(lecun, *axes, dtype=module.dtype),
            bias_init=layers.named(nn.initializers.zeros, layers.OUT, dtype=module.dtype),
            name="text_conv",
        )
        tokens = phrases(jnp.where(mask[..., None], tokens, 0))
    tokens = or_null(module, tokens, inputs, "text")
    weights = mask[..., None] / mask.sum(-1, keepdims=True)[..., None]
    mean = (tokens * weights.astype(tokens.dtype)).sum(axis=-2)
    vector = layers.dense(module.dim, dtype=module.dtype, name="pooled_text")(mean)
    return Embedded(vector=vector, tokens=tokens, mask=mask)
