"""CLIP's text encoder (Radford et al. 2021, section 2.4): the text condition of Stable Diffusion.

Version 1 takes the last states of OpenAI's ViT-L/14. Version 2 takes the penultimate layer's of
OpenCLIP's ViT-H/14, which its published files hold as an encoder of one layer less. Its weights are
read by `weights/clip.py`.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vdm_jax.models import layers
from vdm_jax.models.blocks.encoder import Transformer
from vdm_jax.models.text import token_attention as transformer

OLD_EOS = 2
"""The number that configurations published before 2023 have in the place of the true one."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig:
    """Sizes of an encoder.

    Attributes:
      transformer: its layers.
      vocab_size, max_positions: of the tables of words and positions.
      eos: the number of the token whose first state stands for the text. With `OLD_EOS` it is the
        token of the highest number instead.
      projection: features that this state is projected to; 0 = it is not.
    """

    transformer: Transformer
    vocab_size: int = 49_408
    max_positions: int = 77
    eos: int = 49_407
    projection: int = 0


# The published sizes: of Stable Diffusion 1 and of Stable Diffusion 2.
SIZES = {
    "l": CLIPTextConfig(transformer=Transformer(width=768, hidden=3072, num_layers=12, heads=12)),
    "h": CLIPTextConfig(
        transformer=Transformer(
            width=1024, hidden=4096, num_layers=23, heads=16, activation="gelu"
        ),
    ),
}


class Encoded(NamedTuple):
    """What an encoder makes of a text.

    Attributes:
      states: of each token, normalised.
      pooled: the last layer's state at the end of the text, projected if the encoder does so.
    """

    states: Float[Array, "b l width"]
    pooled: Float[Array, "b d"]


class CLIPTextEncoder(layers.Whole):
    """Tokens to the last hidden states, one a token; a token sees itself and those before it.

    Attributes:
      dtype: of the computation; normalisation and softmax are float32 always.
      skip: layers that are left out at the end for `states`; 1 gives the penultimate layer's. The
        final normalisation follows, as in Stable Diffusion 2.
    """

    config: CLIPTextConfig
    dtype: DTypeLike = jnp.float32
    skip: int = 0

    @property
    def width(self) -> int:
        """Features of a state."""
        return self.config.transformer.width

    @property
    def max_positions(self) -> int:
        """The most tokens of a text."""
        return self.config.max_positions

    def __call__(
        self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"] | None = None
    ) -> Float[Array, "b l width"]:
        """The states of `encode`."""
        return self.encode(tokens, mask).states

    @nn.compact
    def encode(self, tokens: Int[Array, "b l"], mask: Bool[Array, "b l"] | None = None) -> Encoded:
        """States and the pooled one. mask: tokens that others see; None = all, as in Stable
        Diffusion, where padding is seen too. Raises ValueError for too many tokens."""
        config, length = self.config, tokens.shape[1]
        if length > config.max_positions:
            raise ValueError(f"{length} tokens: at most {config.max_positions} are allowed")
        sizes = config.transformer
        words, positions = (
            transformer.table(size, sizes.width, dtype=self.dtype, name=name)
            for name, size in (("words", config.vocab_size), ("positions", config.max_positions))
        )
        x = words(tokens) + positions(jnp.arange(length))
        seen = jnp.tri(length, dtype=bool)
        causal = jnp.where(seen, 0.0, -jnp.inf)[None]
        last, kept = sizes(x, dtype=self.dtype, mask=mask, bias=causal, skip=self.skip)
        norm = transformer.layer_norm(sizes.epsilon, "norm")
        states, last = norm(kept).astype(self.dtype), norm(last).astype(self.dtype)
        found = jnp.argmax(tokens if config.eos == OLD_EOS else tokens == config.eos, axis=-1)
        pooled = jnp.take_along_axis(last, found[:, None, None], axis=1)[:, 0]
        if config.projection:
            axes = (layers.IN, layers.OUT)
            pooled = transformer.dense(
                config.projection, axes=axes, dtype=self.dtype, use_bias=False, name="projection"
            )(pooled)
        return Encoded(states, pooled)
