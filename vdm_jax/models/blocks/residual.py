"""The residual block, conditioned on a vector a frame."""

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vdm_jax.models import layers
from vdm_jax.models.blocks.settings import BlockSettings


class ResidualBlock(nn.Module):
    """norm, swish, conv, norm, scale and shift by the condition, swish, conv; plus the input.

    The second convolution starts at zero, so that the block starts as its shortcut
    (Ho et al. 2020; scale and shift as in Dhariwal & Nichol 2021, section 3).
    """

    features: int
    settings: BlockSettings = BlockSettings()
    dtype: DTypeLike = jnp.float32
    STATIC = (3,)  # `deterministic`, for `layers.remat`

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "n h w c"],
        embedding: Float[Array, "n e"],
        deterministic: bool = True,
    ) -> Float[Array, "n h w _"]:
        """`embedding` is the condition of each frame; `n` is batch times frames."""
        groups, dropout = self.settings.norm_groups, self.settings.dropout
        h = nn.swish(layers.group_norm(x.shape[-1], groups, "norm_in")(x)).astype(self.dtype)
        first, last = (layers.IN, layers.HIDDEN), (layers.HIDDEN, layers.OUT)
        h = layers.conv(self.features, dtype=self.dtype, axes=first, name="conv_in")(h)
        h = layers.group_norm(self.features, groups, "norm_out")(h)
        h = scale_shift(h, embedding, axes=first, dtype=self.dtype)
        h = nn.swish(h).astype(self.dtype)
        if dropout:
            h = nn.Dropout(dropout)(h, deterministic=deterministic)
        h = layers.conv(self.features, dtype=self.dtype, zero=True, axes=last, name="conv_out")(h)
        if x.shape[-1] != self.features:
            x = layers.dense(self.features, dtype=self.dtype, name="shortcut")(x)
        return x.astype(self.dtype) + h


def scale_shift(
    h: Float[Array, "n h w c"],
    embedding: Float[Array, "n e"],
    *,
    dtype: DTypeLike,
    axes: tuple[str, str] = (layers.IN, layers.HIDDEN),
    zero: bool = False,
) -> Float[Array, "n h w c"]:
    """`h` times 1 + scale plus shift, both float32 and linear in the swish of `embedding`.

    The linear map belongs to the module that calls this. zero: it starts at zero, and `h` stays.
    """
    linear = layers.dense(2 * h.shape[-1], dtype=dtype, zero=zero, axes=axes, name="scale_shift")
    modulation = linear(nn.swish(embedding))
    scale, shift = jnp.split(modulation.astype(jnp.float32)[:, None, None, :], 2, axis=-1)
    return h * (1.0 + scale) + shift
