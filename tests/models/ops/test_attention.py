"""Attention over few frames against `jax.nn.dot_product_attention`."""

import jax
import jax.numpy as jnp
import pytest

from tests.models.ops.gradients import check_same, normal
from vdm_jax.models.blocks.temporal import temporal_mask
from vdm_jax.models.ops import attention

HEADS, HEAD_DIM = 2, 4


@pytest.mark.parametrize("images", [0, 2])
def test_attention_of_a_few_frames_is_dot_product_attention(images):
    frames = 5
    mask = temporal_mask(frames, images) if images else None

    def ours(q, k, v, bias):
        return attention.attend_frames(q, k, v, bias, mask)

    def plain(q, k, v, bias):
        return jax.nn.dot_product_attention(q, k, v, bias=bias[None], mask=mask)

    arguments = normal(1, *[(3, frames, HEADS, HEAD_DIM)] * 3, (HEADS, frames, frames))
    check_same(ours, plain, *arguments)
    # The form for CPUs is the one that was compared, also inside of vmap.
    assert "dot_general" not in jax.jit(ours).lower(*arguments).as_text()
    stacked = [jnp.stack([leaf, 2.0 * leaf]) for leaf in arguments]
    check_same(jax.vmap(ours), jax.vmap(plain), *stacked)


@pytest.mark.parametrize("segmented", [False, True])
def test_queries_in_parts_attend_as_all_at_once(segmented):
    queries, keys = 7, 5
    segments = None
    if segmented:
        segments = jnp.array([[0, 0, 1, 1, 1, 2, 2]] * 3), jnp.array([[0, 1, 1, 2, 2]] * 3)

    def in_parts(q, k, v):
        # Three queries at a time, so the last part is not full.
        return attention.attend_tokens(q, k, v, segments, most=3 * 3 * HEADS * keys)

    def plain(q, k, v):
        mask = (
            None
            if segments is None
            else segments[0][:, None, :, None] == segments[1][:, None, None]
        )
        return jax.nn.dot_product_attention(q, k, v, mask=mask)

    shapes = [(3, count, HEADS, HEAD_DIM) for count in (queries, keys, keys)]
    arguments = normal(1, *shapes)
    check_same(in_parts, plain, *arguments)
    assert "while" in jax.jit(in_parts).lower(*arguments).as_text()
    assert "while" not in jax.jit(plain).lower(*arguments).as_text()
