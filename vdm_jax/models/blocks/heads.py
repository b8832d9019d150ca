"""The linear maps to attention heads and back."""

import flax.linen as nn
from jax.typing import DTypeLike

from vdm_jax.models import layers
from vdm_jax.models.ops import product


def to_heads(heads: int, head_dim: int, *, dtype: DTypeLike, name: str) -> nn.DenseGeneral:
    """A linear map of the last axis to (heads, head_dim), without bias."""
    names = (layers.IN, layers.HEADS, layers.HEAD_DIM)
    return layers.DenseGeneral(
        (heads, head_dim),
        use_bias=False,
        dtype=dtype,
        kernel_init=layers.named(nn.initializers.lecun_normal(), *names, dtype=dtype),
        dot_general=product.linear,
        name=name,
    )


def from_heads(
    features: int, *, dtype: DTypeLike, zero: bool = True, name: str = "out"
) -> nn.DenseGeneral:
    """A linear map of the last two axes, heads and head_dim, to `features`. zero: it starts at
    zero."""
    zeros, names = nn.initializers.zeros, (layers.HEADS, layers.HEAD_DIM, layers.OUT)
    init = zeros if zero else nn.initializers.lecun_normal()
    return layers.DenseGeneral(
        features,
        axis=(-2, -1),
        dtype=dtype,
        kernel_init=layers.named(init, *names, dtype=dtype),
        bias_init=layers.named(zeros, layers.OUT, dtype=dtype),
        dot_general=product.linear,
        name=name,
    )
