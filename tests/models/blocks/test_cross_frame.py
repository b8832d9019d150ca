"""Self-attention over frames against numpy, one query at a time; in the U-Net and in ControlNets;
and its memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.blocks.reference import (
    CHANNELS,
    HEAD_DIM,
    HEADS,
    merge,
    project,
    randomised,
    softmax,
)
from vdm_jax.models.blocks.cross_frame import CrossFrame, attend_across
from vdm_jax.models.blocks.slots import ClipContext, Place
from vdm_jax.models.blocks.transformer import SelfAttention
from vdm_jax.models.layers import ANYWHERE, Layout

BATCH, FRAMES, IMAGES, PIXELS = 2, 4, 1, 3
ATTENDED = {
    "own": [[0], [1], [2], [3]],
    "first": [[0], [0], [0], [0]],
    "first_and_previous": [[0, 0], [0, 0], [0, 1], [0, 2]],
    "all": [[0, 1, 2, 3]] * 4,
    (0, -1): [[0, 3]] * 4,
    (2,): [[2]] * 4,
    (0, 1, 3): [[0, 1, 3]] * 4,
}


def context(frames, images=0):
    return ClipContext(
        vectors=jnp.zeros((BATCH * frames, 1)),
        tokens=jnp.zeros((BATCH, 1, 1, 1)),
        frames=frames,
        num_images=images,
        train=False,
    )


def module(frames, layout=ANYWHERE):
    place = Place(
        name="attention_self", part="down", level=0, channels=8, heads=HEADS, depth=1, layout=layout
    )
    return CrossFrame(frames=frames)(place)


@pytest.mark.parametrize("frames", ATTENDED, ids=str)
def test_each_query_attends_to_the_pixels_of_its_frames(frames):
    h = np.random.default_rng(0).normal(size=(BATCH, FRAMES + IMAGES, PIXELS, CHANNELS))
    folded = h.reshape(-1, PIXELS, CHANNELS).astype(np.float32)
    params, output = randomised(module(frames), folded, context(FRAMES + IMAGES, IMAGES))
    output = output.reshape(h.shape)
    attended = [*ATTENDED[frames], [FRAMES]]  # the image attends to itself
    for clip, found in zip(h, output, strict=True):
        for frame, numbers in enumerate(attended):
            q = project(clip[frame], params, "query")
            k, v = (
                project(clip[numbers].reshape(-1, CHANNELS), params, n) for n in ("key", "value")
            )
            out = np.zeros_like(q)
            for head in range(HEADS):
                weights = softmax(q[:, head] @ k[:, head].T / np.sqrt(HEAD_DIM))
                out[:, head] = weights @ v[:, head]
            np.testing.assert_allclose(found[frame], merge(out, params), atol=1e-4)


def test_the_frames_may_be_spread_over_blocks():
    """As where each half of the frames is on another device."""
    h = np.random.default_rng(0).normal(size=(BATCH, FRAMES, PIXELS, CHANNELS)).astype(np.float32)
    params, expected = randomised(
        module("first_and_previous"), h.reshape(-1, PIXELS, CHANNELS), context(FRAMES)
    )
    layout = Layout(blocks=2)
    spread = module("first_and_previous", layout)
    output = spread.apply({"params": params}, layout.fold(jnp.asarray(h)), context(FRAMES))
    found = layout.unfold(output, FRAMES).reshape(expected.shape)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_own_frames_are_the_image_networks_attention():
    assert type(module("own")) is SelfAttention


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ("last", "frames = 'last': allowed are own, first, first_and_previous, all"),
        ((), r"frames = \(\): needs at least one"),
        ((0, 4), r"frames = \(0, 4\): 4: a clip of 4 frames has the numbers -4 to 3"),
        ((-5,), r"-5: a clip of 4 frames"),
    ],
)
def test_frames_that_are_not_there_are_refused(frames, message):
    with pytest.raises(ValueError, match=message):
        CrossFrame(frames=frames).table(4)


def test_the_operations_count_the_frames_attended_to():
    h = jnp.zeros((BATCH * (FRAMES + IMAGES), PIXELS, CHANNELS))
    pair = 4 * BATCH * PIXELS**2 * CHANNELS
    for frames, pairs in (("first", 4), ("first_and_previous", 8), ("all", 16), ((0, 1, 3), 12)):
        found = module(frames).attention_flops(h, context(FRAMES + IMAGES, IMAGES))
        assert found == pair * (pairs + IMAGES)


@functools.cache
def memory(frames, attended):
    """Bytes that the compiled attention holds beside its inputs and its output."""
    table = CrossFrame(frames=attended).table(frames)
    clip = jax.ShapeDtypeStruct((1, frames, 256, 1, 4), jnp.float32)
    attend = jax.jit(lambda q, k, v: attend_across(q, k, v, table))
    return attend.lower(clip, clip, clip).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("attended", ["all", "first_and_previous"])
def test_the_memory_is_linear_in_the_frames(attended):
    """The weights of 64 frames that attend to all, at once, are 1.1 GB."""
    one_frame = 4 * 256**2  # bytes of a frame's weights for one frame
    few, many = memory(32, attended), memory(64, attended)
    assert many < 2.2 * few
    assert many < 3 * 64 * one_frame
