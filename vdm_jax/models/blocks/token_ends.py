"""What is before and behind the blocks of a video transformer: embeddings of the noise level and of
the text, and the map from tokens to the output."""

from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.blocks.settings import TransformerSettings
from vdm_jax.models.blocks.tokens import MODULATIONS, TokenContext, modulate, modulation
from vdm_jax.models.condition.base import Embedder, Inputs


class TimeEmbedding(nn.Module):
    """Times to a vector, and with `shared` to the vectors that modulate all blocks, in float32.

    Attributes:
      embedders: their vectors are added.
    """

    width: int
    features: int
    period: float
    shared: bool
    embedders: tuple[Embedder, ...] = ()
    dtype = jnp.float32

    @property
    def dim(self) -> int:
        """See `condition.base.EmbeddingModule`."""
        return self.width

    @nn.compact
    def __call__(
        self, times: Float[Array, "b levels"], inputs: Inputs | None = None
    ) -> tuple[Float[Array, "b levels c"], Float[Array, "b levels 6 c"] | None]:
        waves = layers.sinusoidal_embedding(times, self.features, max_period=self.period)
        sine, cosine = jnp.split(waves, 2, axis=-1)
        h = jnp.concatenate([cosine, sine], axis=-1)  # the published order
        vector = _mlp(h, self.width, jnp.float32, nn.swish)
        for embed in self.embedders:
            rows = embed(self, inputs).vector
            # Known patches have a noise level of their own, with the same condition of the clip.
            more = [rows[:, :1]] * (vector.shape[1] - rows.shape[1])
            vector = vector + jnp.concatenate([rows, *more], axis=1)
        if not self.shared:
            return vector, None
        last = layers.dense(MODULATIONS * self.width, dtype=jnp.float32, name="modulation")
        modulation = last(nn.swish(vector))
        return vector, rearrange(modulation, "b l (m c) -> b l m c", m=MODULATIONS)


class TextEmbedding(nn.Module):
    """States of a text encoder to tokens of the network's width."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, text: Float[Array, "b l d"]) -> Float[Array, "b l c"]:
        def gelu(h: Array) -> Array:
            return nn.gelu(h, approximate=True)

        return _mlp(text.astype(self.dtype), self.width, self.dtype, gelu)


def _mlp(
    h: Float[Array, "*n d"], width: int, dtype: DTypeLike, between: Callable[[Array], Array]
) -> Float[Array, "*n c"]:
    """Two linear maps, parts of the calling module."""
    first, second = (layers.IN, layers.HIDDEN), (layers.HIDDEN, layers.OUT)
    h = layers.dense(width, dtype=dtype, axes=first, name="linear_in")(h)
    return layers.dense(width, dtype=dtype, axes=second, name="linear_out")(between(h))


class Output(nn.Module):
    """Tokens, modulated by the noise level, to the output's patches in float32."""

    features: int
    patch: tuple[int, int, int]
    settings: TransformerSettings

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], context: TokenContext
    ) -> Float[Array, "b n i j k c2"]:
        shift, scale = modulation(2, context, self.settings, self)
        h = modulate(x, shift, scale, self.settings.epsilon)
        features = int(np.prod(self.patch)) * self.features
        zero = self.settings.modulation == "block"
        h = layers.dense(features, dtype=jnp.float32, zero=zero, name="linear")(h)
        return h.reshape((*h.shape[:2], *self.patch, self.features))
