"""The layers of peers that only the mirrors have."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import mirror
from tests.models.blocks.reference import (
    CHANNELS,
    HEAD_DIM,
    HEADS,
    merge,
    normed,
    project,
    randomised,
    softmax,
)
from tests.models.ops.gradients import check_same, normal
from vdm_jax.models.blocks.settings import BlockSettings
from vdm_jax.models.blocks.spatial import SpatialAttention
from vdm_jax.models.unet import UNet
from vdm_jax.models.video_unet import VideoUNet

SETTINGS = BlockSettings(head_dim=HEAD_DIM, norm_groups=2)


@pytest.mark.parametrize("width", [3, 2 * CHANNELS])
def test_linear_attention(width):
    """With more pixels than twice the channels, keys gather features."""
    x = np.random.default_rng(0).normal(size=(2, 2, width, CHANNELS)).astype(np.float32)
    params, outputs = randomised(mirror.LinearAttention(SETTINGS), x)
    for frame, output in zip(x, outputs, strict=True):
        q, k, v = (project(normed(frame, params, 2), params, n) for n in ("query", "key", "value"))
        h = np.zeros_like(q)
        for head in range(HEADS):
            weights = softmax(q[:, head]) @ softmax(k[:, head], axis=0).T / np.sqrt(HEAD_DIM)
            h[:, head] = weights @ v[:, head]
        expected = frame + merge(h, params).reshape(frame.shape)
        np.testing.assert_allclose(output, expected, atol=1e-4)


def test_gathering_attention_is_linear_attention_with_its_projections():
    def plain(h, q, k, value, out):
        v = jnp.einsum("npc,chd->nphd", h, value)
        return jnp.einsum("nphe,hec->npc", mirror.linear_attention(q, k, v), out)

    arguments = normal(
        0,
        (2, 6, CHANNELS),
        *[(2, 6, HEADS, HEAD_DIM)] * 2,
        (CHANNELS, HEADS, HEAD_DIM),
        (HEADS, HEAD_DIM, CHANNELS),
    )
    # Keys whose exponentials alone would overflow.
    arguments[2] = 100.0 + 3.0 * arguments[2]
    check_same(mirror.gathering_attention, plain, *arguments)


def test_linear_attention_starts_with_the_projections_of_dense_layers():
    """Its parameters have the names, shapes and random values of softmax attention's."""
    x = jnp.ones((1, 5, 5, CHANNELS))
    linear, softmax = (
        nn.meta.unbox(attention(SETTINGS).init(jax.random.key(0), x))
        for attention in (mirror.LinearAttention, SpatialAttention)
    )
    assert jax.tree.structure(linear) == jax.tree.structure(softmax)
    jax.tree.map(np.testing.assert_array_equal, linear, softmax)


def test_a_network_takes_the_layers_of_its_peer():
    plain = VideoUNet(
        unet=UNet(channels=8, channel_mult=(1, 2), num_res_blocks=2, skips="level"),
        settings=BlockSettings(head_dim=4, norm_groups=4),
        attention_levels=(0, 1),
    )
    parts = {"heads": 2, "linear_attention": True, "initial_kernel": 7, "initial_temporal": True}
    network = mirror.mirror(plain, parts)
    z, logsnr = jnp.ones((2, 3, 8, 8, 3)), jnp.zeros(2)
    params = nn.meta.unbox(jax.eval_shape(network.init, jax.random.key(0), z, logsnr, {}))["params"]
    assert {n for n in params if n.startswith("up")} == {
        *(f"up_{level}_block_{i}" for level in (0, 1) for i in (0, 1)),
        *(f"up_{level}_attention_1_{kind}" for level in (0, 1) for kind in ("spatial", "temporal")),
        "up_1_resize",
    }
    assert params["input_conv"]["kernel"].shape == (7, 7, 3, 8)
    for name in ("input_temporal", "up_1_attention_1_spatial", "middle_attention_spatial"):
        assert params[name]["query"]["kernel"].shape[1:] == (2, 4)
    filled = jax.tree.map(lambda a: jnp.ones(a.shape) * 0.1, params)
    output = jax.jit(network.apply)({"params": filled}, z, logsnr, {})
    assert output.shape == z.shape and np.isfinite(output).all()
