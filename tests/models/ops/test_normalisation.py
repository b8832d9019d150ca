"""Group normalisation against that of linen."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from vdm_jax.models import layers


@pytest.mark.parametrize("groups", [1, 4, 12])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_values_and_gradients_equal_those_of_linen(groups, dtype):
    drawn = jax.random.normal(jax.random.key(0), (3, 4, 5, 12))
    x, seen = (3.0 * drawn + 1.0).astype(dtype), jax.random.normal(jax.random.key(1), drawn.shape)
    scale, bias = jax.random.normal(jax.random.key(2), (2, 12))

    def of(norm):
        def loss(params, x):
            y = norm.apply({"params": params}, x)
            assert y.dtype == jnp.float32
            return (y * seen).sum()

        return jax.value_and_grad(loss, (0, 1))({"scale": scale, "bias": bias}, x)

    expected = of(nn.GroupNorm(groups, dtype=jnp.float32))
    # The gradient of x is rounded to its dtype; sums are taken in another order.
    tolerance = 1e-4 if dtype == jnp.float32 else 2e-2
    chex.assert_trees_all_close(
        of(layers.group_norm(12, groups)), expected, rtol=tolerance, atol=tolerance
    )


def test_a_flat_frame_becomes_the_bias():
    """Rounding makes the variance of this one -2.5: its root would not be a number."""
    x = jnp.full((1, 5, 5, 3), 2345.678)
    params = {"scale": jnp.ones(3), "bias": jnp.arange(3.0)}
    y, pull = jax.vjp(lambda x: layers.group_norm(3, 1).apply({"params": params}, x), x)
    # The mean is off by 7e-4, three roundings of a float32 of this size; the deviation is 1e-3.
    chex.assert_trees_all_close(y, jnp.broadcast_to(params["bias"], y.shape), atol=1.0)
    chex.assert_tree_all_finite(pull(jnp.ones_like(y)))
