"""Attention against direct numpy, one query at a time."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.models import attention, layers

HEADS, HEAD_DIM, CHANNELS = 2, 4, 8


def randomised(module, x, *args):
    """Parameters without zeros and the compiled output for them; `args` are static."""
    rng = np.random.default_rng(1)
    shapes = nn.meta.unbox(jax.eval_shape(lambda x: module.init(jax.random.key(0), x, *args), x))
    params = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(np.float32), shapes["params"])
    output = jax.jit(lambda params, x: module.apply({"params": params}, x, *args))(params, x)
    return params, np.asarray(output)


def normed(x, params, groups):
    """Group normalisation of one frame (h, w, c), in numpy float64."""
    h, w, c = x.shape
    grouped = x.astype(np.float64).reshape(h * w, groups, c // groups)
    mean = grouped.mean((0, 2), keepdims=True)
    var = grouped.var((0, 2), keepdims=True)
    flat = ((grouped - mean) / np.sqrt(var + 1e-6)).reshape(h * w, c)
    return flat * np.asarray(params["norm"]["scale"]) + np.asarray(params["norm"]["bias"])


def softmax(a, axis=-1):
    e = np.exp(a - a.max(axis, keepdims=True))
    return e / e.sum(axis, keepdims=True)


def project(h, params, name):
    return np.einsum("pc,chd->phd", h, np.asarray(params[name]["kernel"], np.float64))


def merge(h, params):
    out = np.einsum("phd,hdc->pc", h, np.asarray(params["out"]["kernel"], np.float64))
    return out + np.asarray(params["out"]["bias"])


@pytest.mark.parametrize(
    ("kind", "width"), [("softmax", 3), ("linear", 3), ("linear", 2 * CHANNELS)]
)
def test_spatial_attention(kind, width):
    x = np.random.default_rng(0).normal(size=(2, 2, width, CHANNELS)).astype(np.float32)
    module = attention.SpatialAttention(HEADS, HEAD_DIM, kind, norm_groups=2)
    params, found = randomised(module, x)
    for frame, output in zip(x, found, strict=True):
        q, k, v = (project(normed(frame, params, 2), params, n) for n in ("query", "key", "value"))
        h = np.zeros_like(q)
        for head in range(HEADS):
            if kind == "softmax":
                weights = softmax(q[:, head] @ k[:, head].T / np.sqrt(HEAD_DIM))
            else:
                weights = softmax(q[:, head]) @ softmax(k[:, head], axis=0).T / np.sqrt(HEAD_DIM)
            h[:, head] = weights @ v[:, head]
        expected = frame + merge(h, params).reshape(frame.shape)
        np.testing.assert_allclose(output, expected, atol=1e-4)


def gradients(function, *arguments):
    """Of a sum that weighs every output otherwise, by every argument."""

    def total(*arguments):
        output = function(*arguments)
        return jnp.vdot(
            output, jnp.cos(jnp.arange(output.size, dtype=jnp.float32)).reshape(output.shape)
        )

    return jax.jit(jax.grad(total, tuple(range(len(arguments)))))(*arguments)


def normal(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def check_same(ours, theirs, *arguments):
    """Outputs and gradients are equal but for the order of float32 sums."""
    np.testing.assert_allclose(ours(*arguments), theirs(*arguments), rtol=1e-4, atol=1e-5)
    for a, b in zip(gradients(ours, *arguments), gradients(theirs, *arguments), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())


def test_gathering_attention_is_linear_attention_with_its_projections():

    def plain(h, q, k, value, out):
        v = jnp.einsum("npc,chd->nphd", h, value)
        return jnp.einsum("nphe,hec->npc", attention._linear_attention(q, k, v), out)

    arguments = normal(
        0,
        (2, 6, CHANNELS),
        *[(2, 6, HEADS, HEAD_DIM)] * 2,
        (CHANNELS, HEADS, HEAD_DIM),
        (HEADS, HEAD_DIM, CHANNELS),
    )
    # Keys whose exponentials alone would overflow.
    arguments[2] = 100.0 + 3.0 * arguments[2]
    check_same(attention._gathering_attention, plain, *arguments)


@pytest.mark.parametrize("images", [0, 2])
def test_attention_of_a_few_frames_is_dot_product_attention(images):
    frames = 5
    mask = attention.temporal_mask(frames, images) if images else None

    def ours(q, k, v, bias):
        return attention._attend_frames(q, k, v, bias, mask)

    def plain(q, k, v, bias):
        return jax.nn.dot_product_attention(q, k, v, bias=bias[None], mask=mask)

    arguments = normal(1, *[(3, frames, HEADS, HEAD_DIM)] * 3, (HEADS, frames, frames))
    check_same(ours, plain, *arguments)
    # The form for CPUs is the one that was compared, also inside of vmap.
    assert "dot_general" not in jax.jit(ours).lower(*arguments).as_text()
    stacked = [jnp.stack([leaf, 2.0 * leaf]) for leaf in arguments]
    check_same(jax.vmap(ours), jax.vmap(plain), *stacked)


@pytest.mark.parametrize(
    ("axes", "kernel"), [(1, (4, 2, 6)), (2, (2, 6, 4)), (1, (6, 4)), (2, (2, 2, 2, 6))]
)
def test_linear_is_a_product_with_a_matrix(axes, kernel):
    dimensions = tuple(range(2, 2 + axes)), tuple(range(axes))

    def plain(x, kernel):
        return jax.lax.dot_general(x, kernel, (dimensions, ((), ())))

    def ours(x, kernel):
        return layers.linear(x, kernel, (dimensions, ((), ())))

    check_same(ours, plain, *normal(2, (3, 5, *kernel[:axes]), kernel))


def test_linear_attention_starts_with_the_projections_of_dense_layers():
    """Its parameters have the names, shapes and random values that other kinds' have."""
    x = jnp.ones((1, 5, 5, CHANNELS))
    linear, softmax = (
        nn.meta.unbox(attention.SpatialAttention(HEADS, HEAD_DIM, kind).init(jax.random.key(0), x))
        for kind in ("linear", "softmax")
    )
    assert jax.tree.structure(linear) == jax.tree.structure(softmax)
    jax.tree.map(np.testing.assert_array_equal, linear, softmax)


def test_temporal_attention():
    frames, images = 3, 1
    x = np.random.default_rng(0).normal(size=(2 * (frames + images), 1, 2, CHANNELS))
    x = x.astype(np.float32)
    module = attention.TemporalAttention(HEADS, HEAD_DIM, norm_groups=2)
    params, found = randomised(module, x, frames + images, images)
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
                found[4 * example : 4 * example + 4, 0, pixel], expected, atol=1e-4
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
    found = attention.relative_position_bucket(
        jnp.asarray(distances), num_buckets=32, max_distance=32
    )
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
    module = attention.CrossAttention(HEADS, HEAD_DIM, norm_groups=2)
    params, found = randomised(module, x, tokens, mask, 1)
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
        np.testing.assert_allclose(found[frame], expected, atol=1e-4)


def test_attention_starts_as_the_identity():
    x = jax.random.normal(jax.random.key(0), (2, 2, 2, CHANNELS))
    for module, args in (
        (attention.SpatialAttention(HEADS, HEAD_DIM), ()),
        (attention.TemporalAttention(HEADS, HEAD_DIM), (2,)),
    ):
        output = jax.jit(lambda x: module.init_with_output(jax.random.key(0), x, *args)[0])(x)  # noqa: B023
        np.testing.assert_array_equal(output, x)


def test_sinusoidal_embedding_spans_its_periods():
    e = layers.sinusoidal_embedding(jnp.arange(3.0), 4, max_period=100.0)
    np.testing.assert_allclose(
        e, [[np.sin(p), np.sin(p / 10), np.cos(p), np.cos(p / 10)] for p in range(3)], rtol=1e-5
    )
