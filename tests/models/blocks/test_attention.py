"""Attention over space, over time and to text against numpy, one query at a time."""

import jax
import jax.numpy as jnp
import numpy as np

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
from vdm_jax.models.blocks.cross import CrossAttention
from vdm_jax.models.blocks.settings import BlockSettings
from vdm_jax.models.blocks.spatial import SpatialAttention
from vdm_jax.models.blocks.temporal import TemporalAttention, relative_position_bucket

SETTINGS = BlockSettings(head_dim=HEAD_DIM, norm_groups=2)


def test_spatial_attention():
    x = np.random.default_rng(0).normal(size=(2, 2, 3, CHANNELS)).astype(np.float32)
    params, outputs = randomised(SpatialAttention(SETTINGS), x)
    for frame, output in zip(x, outputs, strict=True):
        q, k, v = (project(normed(frame, params, 2), params, n) for n in ("query", "key", "value"))
        h = np.zeros_like(q)
        for head in range(HEADS):
            weights = softmax(q[:, head] @ k[:, head].T / np.sqrt(HEAD_DIM))
            h[:, head] = weights @ v[:, head]
        expected = frame + merge(h, params).reshape(frame.shape)
        np.testing.assert_allclose(output, expected, atol=1e-4)


def test_temporal_attention():
    frames, images = 3, 1
    x = np.random.default_rng(0).normal(size=(2 * (frames + images), 1, 2, CHANNELS))
    x = x.astype(np.float32)
    module = TemporalAttention(SETTINGS)
    params, outputs = randomised(module, x, frames + images, images)
    table = np.asarray(params["position_bias"]["table"])
    for example in range(2):
        clip = x[4 * example : 4 * example + 4]
        flat = np.stack([normed(frame, params, 2) for frame in clip])  # f, p, c
        for pixel in range(2):
            q, k, v = (project(flat[:, pixel], params, n) for n in ("query", "key", "value"))
            h = np.zeros_like(q)
            h[3] = v[3]  # the image sees itself only
            for head in range(HEADS):
                logits = q[:3, head] @ k[:3, head].T / np.sqrt(HEAD_DIM)
                for i in range(3):
                    for j in range(3):
                        logits[i, j] += table[scalar_bucket(j - i, 32, 32), head]
                h[:3, head] = softmax(logits) @ v[:3, head]
            expected = clip[:, 0, pixel] + merge(h, params)
            np.testing.assert_allclose(
                outputs[4 * example : 4 * example + 4, 0, pixel], expected, atol=1e-4
            )


def scalar_bucket(distance, num_buckets, max_distance):
    """T5's bucket of one distance, written out."""
    half = num_buckets // 2
    offset = half if distance > 0 else 0
    distance = abs(distance)
    exact = half // 2
    if distance < exact:
        return offset + distance
    share = np.log(distance / exact) / np.log(max_distance / exact)
    return offset + min(half - 1, exact + int(share * (half - exact)))


def test_buckets():
    distances = np.arange(-100, 101)
    found = relative_position_bucket(jnp.asarray(distances), num_buckets=32, max_distance=32)
    # 16 = exact * (max / exact)^(1/2) lies on a bucket's edge, where rounding may go either way.
    expected = np.array([scalar_bucket(d, 32, 32) for d in distances])
    on_edge = np.abs(distances) == 16
    np.testing.assert_array_equal(np.asarray(found)[~on_edge], expected[~on_edge])
    assert set(np.asarray(found)) == set(range(32)) - {16}  # no positive distance of 0


def test_cross_attention_attends_to_its_own_text():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 1, 2, CHANNELS)).astype(np.float32)  # 2 frames and an image
    tokens = jnp.asarray(rng.normal(size=(1, 2, 3, 5)), jnp.float32)
    mask = jnp.array([[[True, True, False], [True, False, False]]])
    module = CrossAttention(SETTINGS)
    params, outputs = randomised(module, x, tokens, mask, 1)
    for frame in range(3):
        item = 0 if frame < 2 else 1
        t = np.asarray(tokens[0, item], np.float64)
        t = (t - t.mean(-1, keepdims=True)) / np.sqrt(t.var(-1, keepdims=True) + 1e-6)
        t = t * np.asarray(params["token_norm"]["scale"]) + np.asarray(params["token_norm"]["bias"])
        q = project(normed(x[frame], params, 2), params, "query")
        k, v = project(t, params, "key"), project(t, params, "value")
        logits = np.einsum("phd,lhd->hpl", q, k) / np.sqrt(HEAD_DIM)
        weights = softmax(np.where(np.asarray(mask)[0, item], logits, -np.inf))
        expected = x[frame] + merge(np.einsum("hpl,lhd->phd", weights, v), params).reshape(1, 2, -1)
        np.testing.assert_allclose(outputs[frame], expected, atol=1e-4)


def test_attention_starts_as_the_identity():
    x = jax.random.normal(jax.random.key(0), (2, 2, 2, CHANNELS))
    for module, args in (
        (SpatialAttention(SETTINGS), ()),
        (TemporalAttention(SETTINGS), (2,)),
    ):
        output = jax.jit(lambda x: module.init_with_output(jax.random.key(0), x, *args)[0])(x)  # noqa: B023
        np.testing.assert_array_equal(output, x)
