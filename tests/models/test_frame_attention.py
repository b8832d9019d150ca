"""Tune-A-Video's attention over frames: images apart, and frames spread over blocks. The numbers
are compared in tests/weights/test_tune_a_video.py."""

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.models.blocks.slots import ClipContext, Place
from vdm_jax.models.frame_attention import FrameAttentions
from vdm_jax.models.layers import ANYWHERE, Layout

BATCH, FRAMES, IMAGES, PIXELS, CHANNELS = 2, 4, 2, 3, 8


def module(layout=ANYWHERE):
    place = Place(
        name="temporal_0", part="down", level=0, channels=CHANNELS, heads=2, depth=1, layout=layout
    )
    return FrameAttentions()(place)


def context(frames, images=0):
    return ClipContext(
        vectors=jnp.zeros((BATCH * frames, 1)),
        tokens=jnp.zeros((BATCH, 1, 1, 1)),
        frames=frames,
        num_images=images,
        train=False,
    )


def features(*sizes):
    return jnp.asarray(np.random.default_rng(1).normal(size=(*sizes, CHANNELS)), jnp.float32)


def drawn(h, *args):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: module().init(jax.random.key(0), h, *args))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), shapes)


def test_a_layer_starts_as_the_identity_and_then_mixes_the_frames_of_a_pixel():
    h, at = features(BATCH * FRAMES, PIXELS), context(FRAMES)
    fresh = module().init(jax.random.key(0), h, at)
    np.testing.assert_array_equal(module().apply(fresh, h, at), h)
    params = drawn(h, at)
    moved = h.at[0, 1, 0].add(1.0)  # the first frame of the first clip, at one pixel
    changed = np.abs(module().apply(params, moved, at) - module().apply(params, h, at)).max(-1)
    changed = changed.reshape(BATCH, FRAMES, PIXELS) > 1e-6
    assert changed[0, :, 1].all() and changed.sum() == FRAMES


def test_images_stay_as_they_are_and_no_frame_depends_on_them():
    at = context(FRAMES + IMAGES, IMAGES)
    h = features(BATCH, FRAMES + IMAGES, PIXELS)
    params = drawn(h.reshape(-1, PIXELS, CHANNELS), at)
    found = module().apply(params, h.reshape(-1, PIXELS, CHANNELS), at).reshape(h.shape)
    np.testing.assert_array_equal(found[:, FRAMES:], h[:, FRAMES:])
    alone = module().apply(params, h[:, :FRAMES].reshape(-1, PIXELS, CHANNELS), context(FRAMES))
    np.testing.assert_allclose(found[:, :FRAMES].reshape(alone.shape), alone, atol=1e-5)


def test_the_frames_may_be_spread_over_blocks():
    h, at = features(BATCH, FRAMES, PIXELS + 1), context(FRAMES)
    params = drawn(h.reshape(-1, PIXELS + 1, CHANNELS), at)
    wanted = module().apply(params, h.reshape(-1, PIXELS + 1, CHANNELS), at).reshape(h.shape)
    layout = Layout(blocks=2)
    found = module(layout).apply(params, layout.fold(h), at)
    np.testing.assert_allclose(layout.unfold(found, FRAMES), wanted, atol=1e-5)
