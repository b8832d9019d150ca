"""MiniLM, a small sentence encoder: all-MiniLM-L6-v2.

BERT's encoder (Devlin et al. 2019, section 3; post-normalised, as Vaswani et al. 2017) with 6
layers of width 384, distilled from a larger one (Wang et al. 2020) and trained so that sentences of
one meaning lie close (Reimers & Gurevych 2019). Its weights are in `minilm_weights.py`.
"""

import functools
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from vdm_jax.models import layers
from vdm_jax.models.text import token_attention as transformer
from vdm_jax.models.text.subwords import WordPiece, batches

_EPSILON = 1e-12  # of the normalisations


class MiniLM(layers.Whole):
    """Tokens to the last hidden states, one a token. The defaults are all-MiniLM-L6-v2's.

    Attributes:
      vocab_size, max_positions: of the tables of words and positions.
      width, num_layers, heads, hidden: sizes; `hidden` is the width inside of the feed-forward
        layers.
      dtype: of the computation; normalisation and softmax are float32 always.
    """

    vocab_size: int = 30_522
    max_positions: int = 512
    width: int = 384
    num_layers: int = 6
    heads: int = 12
    hidden: int = 1536
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"]
    ) -> Float[Array, "b l width"]:
        """States of tokens outside of `mask` mean nothing. Raises ValueError for too many."""
        length = tokens.shape[1]
        if length > self.max_positions:
            raise ValueError(f"{length} tokens: at most {self.max_positions} are allowed")
        table = functools.partial(transformer.table, width=self.width, dtype=self.dtype)
        x = table(self.vocab_size, name="words")(tokens)
        x = x + table(self.max_positions, name="positions")(jnp.arange(length))
        # What tells a pair of sentences apart; there is only the first here.
        x = x + table(2, name="segments")(jnp.zeros((), jnp.int32))
        x = transformer.layer_norm(_EPSILON, "norm")(x).astype(self.dtype)
        for i in range(self.num_layers):
            x = _Layer(self.heads, self.hidden, self.dtype, name=f"layer_{i}")(x, mask)
        return x


class _Layer(nn.Module):
    heads: int
    hidden: int
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Float[Array, "b l d"], mask: Bool[Array, "b l"]) -> Float[Array, "b l d"]:
        width = x.shape[-1]
        make = functools.partial(transformer.dense, dtype=self.dtype)
        sizes, names = (self.heads, width // self.heads), (layers.HEADS, layers.HEAD_DIM)
        query, key, value = (
            make(sizes, axes=(layers.IN, *names), name=name)(x)
            for name in ("query", "key", "value")
        )
        attended = transformer.attend(query / np.sqrt(width // self.heads), key, value, mask)
        merge = make(width, axis=(-2, -1), axes=(*names, layers.OUT), name="out")
        x = transformer.layer_norm(_EPSILON, "attention_norm")(x + merge(attended)).astype(
            self.dtype
        )
        h = make(self.hidden, axes=(layers.IN, layers.HIDDEN), name="mlp_in")(x)
        h = nn.gelu(h, approximate=False)
        h = make(width, axes=(layers.HIDDEN, layers.OUT), name="mlp_out")(h)
        return transformer.layer_norm(_EPSILON, "mlp_norm")(x + h).astype(self.dtype)


def sentence_embedding(
    hidden: Float[Array, "b l d"], mask: Bool[Array, "b l"]
) -> Float[Array, "b d"]:
    """The mean of a sentence's states, normalised to length 1: the scalar product of two is their
    cosine similarity (Reimers & Gurevych 2019, section 3)."""
    weights = mask[..., None].astype(jnp.float32)
    mean = (hidden * weights).sum(1) / jnp.maximum(weights.sum(1), 1.0)
    return mean / jnp.maximum(jnp.linalg.norm(mean, axis=-1, keepdims=True), 1e-12)


class SentenceEncoder:
    """Sentences to normalised embeddings, on the host.

        encoder = SentenceEncoder(*minilm_weights.load_weights())
        similarity = encoder(["a red ball"]) @ encoder(["a ball that is red"]).T

    Sentences of more than `max_length` tokens are cut.
    """

    def __init__(
        self,
        network: MiniLM,
        params: PyTree,
        tokenizer: WordPiece,
        *,
        max_length: int = 128,
        batch_size: int = 64,
    ):
        if not 2 < max_length <= network.max_positions:
            raise ValueError(
                f"max_length = {max_length}: must be from 3 to {network.max_positions}"
            )
        if batch_size < 1:
            raise ValueError(f"batch_size = {batch_size}: must be positive")
        self.network, self.tokenizer = network, tokenizer
        self.max_length, self.batch_size = max_length, batch_size
        self._params = params
        self._embed = jax.jit(
            lambda params, tokens, mask: sentence_embedding(
                network.apply({"params": params}, tokens, mask), mask
            )
        )

    def __call__(self, sentences: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """float32, one row a sentence."""
        sentences = list(sentences)
        found = np.zeros((len(sentences), self.network.width), np.float32)
        tokens, mask = self.tokenizer.encode(sentences, self.max_length)
        for rows, batch in batches(mask, self.batch_size):
            found[rows] = self._embed(self._params, *map(jnp.asarray, batch(tokens, mask)))[
                : len(rows)
            ]
        return found
