"""The residual block under a remat policy."""

import jax
import jax.numpy as jnp

from vdm_jax.models import layers
from vdm_jax.models.blocks.residual import ResidualBlock
from vdm_jax.models.blocks.settings import BlockSettings


def test_the_remat_policy_dots_keeps_convolutions():
    """It computes no convolution again; full does, in the backward pass."""

    def convolutions(policy):
        block = layers.remat(ResidualBlock, policy, static_argnums=ResidualBlock.STATIC)(
            8, BlockSettings(norm_groups=4)
        )
        h, embedding = jnp.zeros((1, 4, 4, 8)), jnp.zeros((1, 8))
        params = jax.eval_shape(lambda: block.init(jax.random.key(0), h, embedding, True))
        gradient = jax.grad(lambda h, p: block.apply(p, h, embedding, True).sum())
        return str(jax.make_jaxpr(gradient)(h, params)).count("= conv_general_dilated")

    assert convolutions("none") == convolutions("dots") < convolutions("full")
