"""Text: tokens that pixels attend to, and their mean in the vector of each frame."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
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


def _embed_tokens(
    module: EmbeddingModule, inputs: Inputs, tokens: Float[Array, "b items l dim"], kernel: int
) -> Embedded:
    mask = inputs.items("token_mask")
    if kernel:
        lecun, axes = nn.initializers.lecun_normal(), (None, layers.IN, layers.OUT)
        phrases = nn.Conv(
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
