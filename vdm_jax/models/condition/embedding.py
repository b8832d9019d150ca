"""The sum of a network's embedders: a vector a frame, and tokens."""

from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from einops import repeat
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vdm_jax.models import layers
from vdm_jax.models.condition.base import Cond, Embedder, EmbeddingModule, Inputs, mlp
from vdm_jax.models.condition.vector import Number

LOGSNR = Number(key="logsnr")


class ConditionEmbedding(nn.Module):
    """Adds up the vectors of the log-SNR and of `embedders`, then a two-layer MLP.

    Attributes:
      dim: width of the vectors and tokens; even.
      embedders: the conditions, in the order in which they are added.
    """

    dim: int
    embedders: tuple[Embedder, ...] = ()
    dtype: DTypeLike = jnp.float32
    layout: layers.Layout = layers.ANYWHERE

    @nn.compact
    def __call__(
        self, logsnr: Float[Array, "b"], cond: Cond, frames: int, num_images: int = 0
    ) -> tuple[
        Float[Array, "bf dim"],
        Float[Array, "b items l width"] | None,
        Bool[Array, "b items l"] | None,
    ]:
        """The vectors (batch and frames folded, images last), the tokens and their mask.

        Raises ValueError if `cond` lacks a key that an embedder reads.
        """
        inputs = Inputs(
            cond={**cond, "logsnr": logsnr},
            frames=frames,
            num_images=num_images,
        )
        h = LOGSNR(self, inputs).vector
        h, tokens, mask = add_embedders(self, h, self.embedders, inputs)
        # A nonlinear layer after the sum, so that the effect of a word can depend on the frame.
        return self.layout.fold(mlp(self, "mix", nn.swish(h))), tokens, mask


def add_embedders(
    module: EmbeddingModule,
    vector: Float[Array, "b rows dim"],
    embedders: Sequence[Embedder],
    inputs: Inputs,
) -> tuple[
    Float[Array, "b f dim"], Float[Array, "b items l width"] | None, Bool[Array, "b items l"] | None
]:
    """`vector` plus the vectors of `embedders`, a row a frame and image, and the tokens of the last
    embedder that has some, with their mask."""
    tokens = mask = None
    for embed in (embed for embed in embedders if not embed.PER_FRAME):
        embedded = embed(module, inputs)
        vector = vector + embedded.vector
        if embedded.tokens is not None:
            tokens, mask = embedded.tokens, embedded.mask
    shape = (vector.shape[0], 1 + inputs.num_images, module.dim)
    vector = jnp.broadcast_to(vector, shape)
    clip = repeat(vector[:, 0], "b d -> b f d", f=inputs.frames - inputs.num_images)
    h = jnp.concatenate([clip, vector[:, 1:]], axis=1)
    for embed in (embed for embed in embedders if embed.PER_FRAME):
        h = h + embed(module, inputs).vector
    return h, tokens, mask
