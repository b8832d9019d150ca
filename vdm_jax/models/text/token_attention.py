"""What frozen encoders share: attention among tokens, exact products, layers and their shapes."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PyTree

from vdm_jax.models import layers

_init = nn.initializers.normal(0.02)


def precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """Of products in `dtype`: accelerators multiply float32 in less unless they are told."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def attend(
    query: Float[Array, "b l heads dim"],
    key: Float[Array, "b l heads dim"],
    value: Float[Array, "b l heads dim"],
    mask: Bool[Array, "b l"] | None = None,
    bias: Float[Array, "#heads l l"] | None = None,
) -> Float[Array, "b l heads dim"]:
    """Attention of every token to the tokens of `mask`, None = to all, softmax in float32.

    Scores are not scaled here; `bias` is added to them.
    """
    exact = precision(query.dtype)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=exact).astype(jnp.float32)
    if bias is not None:
        scores = scores + bias
    if mask is not None:
        scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = nn.softmax(scores).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value, precision=exact)


def dense(
    features: int | tuple[int, int],
    *,
    axes: tuple[str, ...],
    dtype: DTypeLike,
    axis: int | Sequence[int] = -1,
    use_bias: bool = True,
    name: str | None = None,
) -> nn.DenseGeneral:
    """A linear map, in full float32 where `dtype` is: its results are kept and compared.

    axes: the logical names of the kernel's axes.
    """
    outputs = len(features) if isinstance(features, tuple) else 1
    return layers.DenseGeneral(
        features,
        axis=axis,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=layers.named(_init, *axes, dtype=dtype),
        bias_init=layers.named(nn.initializers.zeros, *axes[-outputs:], dtype=dtype),
        precision=precision(dtype),
        name=name,
    )


def layer_norm(epsilon: float, name: str) -> nn.LayerNorm:
    """Layer normalisation in float32, with a scale and a bias."""
    return layers.LayerNorm(
        epsilon,
        dtype=jnp.float32,
        scale_init=layers.named(nn.initializers.ones, layers.CHANNELS),
        bias_init=layers.named(nn.initializers.zeros, layers.CHANNELS),
        name=name,
    )


def table(size: int, width: int, *, dtype: DTypeLike, name: str) -> nn.Embed:
    """A table of learned vectors, of words or of positions."""
    init = layers.named(_init, layers.VOCAB, layers.OUT, dtype=dtype)
    return layers.Embed(size, width, embedding_init=init, dtype=dtype, name=name)


def abstract_params(network: nn.Module) -> PyTree:
    """For each parameter of a text encoder a `layers.Named` of its shape. Nothing is computed."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return layers.abstract_params(network, tokens, tokens > 0)


def shapes(network: nn.Module) -> PyTree:
    """The shapes of a text encoder's parameters, without their names."""
    return jax.tree.map(
        lambda leaf: leaf.value,
        abstract_params(network),
        is_leaf=lambda leaf: isinstance(leaf, layers.Named),
    )
