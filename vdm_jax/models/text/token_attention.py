"""What frozen text encoders share: attention among the tokens of a sentence, and exact products."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PyTree

from vdm_jax.models import layers


def precision(dtype: DTypeLike) -> jax.lax.Precision | None:
    """Of products in `dtype`: accelerators multiply float32 in less unless they are told."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def attend(
    query: Float[Array, "b l heads dim"],
    key: Float[Array, "b l heads dim"],
    value: Float[Array, "b l heads dim"],
    mask: Bool[Array, "b l"],
    bias: Float[Array, "heads l l"] | None = None,
) -> Float[Array, "b l heads dim"]:
    """Attention of every token to the tokens of `mask`, softmax in float32.

    Scores are not scaled here; `bias` is added to them.
    """
    exact = precision(query.dtype)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, precision=exact).astype(jnp.float32)
    if bias is not None:
        scores = scores + bias
    scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
    weights = nn.softmax(scores).astype(value.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", weights, value, precision=exact)


def abstract_params(network: nn.Module) -> PyTree:
    """For each parameter of a text encoder a `layers.Named` of its shape. Nothing is computed."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    return jax.eval_shape(network.init, jax.random.key(0), tokens, tokens > 0)["params"]


def shapes(network: nn.Module) -> PyTree:
    """The shapes of a text encoder's parameters, without their names."""
    return jax.tree.map(
        lambda leaf: leaf.value,
        abstract_params(network),
        is_leaf=lambda leaf: isinstance(leaf, layers.Named),
    )
