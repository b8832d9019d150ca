"""The convolution over three frames, as a block."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.models import layers
from vdm_jax.models.blocks import temporal
from vdm_jax.models.blocks.settings import BlockSettings

FRAMES, IMAGES = 5, 2


@pytest.fixture(scope="module")
def layer():
    """A layer with random weights, and features of two clips with two images each."""
    module = temporal.TemporalConvolution(BlockSettings(norm_groups=2))
    x = jax.random.normal(jax.random.key(0), (2 * FRAMES, 2, 3, 4))
    params = layers.nn.meta.unbox(module.init(jax.random.key(1), x, FRAMES))
    drawn = jax.tree.map(lambda p: jax.random.normal(jax.random.key(2), p.shape), params)
    return module, params, drawn, x


def test_it_starts_as_the_identity(layer):
    module, params, _, x = layer
    chex.assert_trees_all_equal(module.apply(params, x, FRAMES, IMAGES), x)


def test_it_is_the_convolution_over_three_frames(layer):
    module, _, drawn, x = layer
    p = drawn["params"]
    norm = layers.group_norm(4, 2, None)
    h = jax.nn.silu(norm.apply({"params": p["norm"]}, x))
    video = np.asarray(h).reshape(2, FRAMES, 2, 3, 4)
    padded = np.pad(video, [(0, 0), (1, 1), (0, 0), (0, 0), (0, 0)])
    taps = np.asarray(p["conv"]["taps"]["kernel"])  # in, tap, out
    mixed = sum(padded[:, k : k + FRAMES] @ taps[:, k] for k in range(3))
    mixed = mixed + np.asarray(p["conv"]["bias"])
    expected = np.asarray(x) + mixed.reshape(x.shape)
    chex.assert_trees_all_close(module.apply(drawn, x, FRAMES), expected, atol=1e-4)


def test_images_are_left_alone_and_unseen(layer):
    module, _, drawn, x = layer
    out = module.apply(drawn, x, FRAMES, IMAGES).reshape(2, FRAMES, 2, 3, 4)
    video = x.reshape(out.shape)
    clip = FRAMES - IMAGES
    chex.assert_trees_all_equal(out[:, clip:], video[:, clip:])
    alone = module.apply(drawn, video[:, :clip].reshape(-1, 2, 3, 4), clip)
    chex.assert_trees_all_close(out[:, :clip].reshape(alone.shape), alone, atol=1e-5)
    only_images = module.apply(drawn, x, FRAMES, FRAMES)
    chex.assert_trees_all_equal(only_images, x)


def test_a_layout_of_blocks_computes_the_same(layer):
    module, _, drawn, x = layer
    wide = jnp.concatenate([x, x])[:16]  # 2 clips of 8 frames
    layout = layers.Layout(blocks=2)
    spread = layout.fold(wide.reshape(2, 8, 2, 3, 4))
    out = module.clone(layout=layout).apply(drawn, spread, 8)
    expected = module.apply(drawn, wide, 8).reshape(2, 8, 2, 3, 4)
    chex.assert_trees_all_close(layout.unfold(out, 8), expected, atol=1e-5)
