"""TransNet V2 equals the published network, and its answers become transitions."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from tests.weights import transnet_weights
from vdm_jax.models import transnet
from vdm_jax.weights import transnet as weights

GOLDEN = Path(__file__).parents[1] / "weights" / "golden" / "transnet.safetensors"


@pytest.fixture(scope="module")
def tensors():
    with safetensors.safe_open(GOLDEN, "numpy") as file:
        shapes = json.loads(file.metadata()["recorded"])["shapes"]
    return transnet_weights.draw(shapes)


def test_logits_are_the_published_networks(tensors):
    recorded = safetensors.numpy.load_file(GOLDEN)
    params = weights.convert(tensors)
    network = transnet.TransNetV2()
    abstract = jax.eval_shape(
        network.init, jax.random.key(0), jnp.zeros((1, 24, 27, 48, 3), jnp.uint8)
    )
    unboxed = jax.tree.map(
        lambda leaf: leaf.value.shape if hasattr(leaf, "value") else leaf.shape,
        abstract["params"],
        is_leaf=lambda leaf: hasattr(leaf, "value"),
    )
    assert jax.tree.map(np.shape, params) == unboxed
    found = jax.jit(network.apply)({"params": params}, recorded["frames"][None])[0]
    scale = recorded["logits"].std()
    np.testing.assert_allclose(found / scale, recorded["logits"] / scale, atol=1e-4)


def test_a_tensor_that_is_missing_or_unknown_is_named(tensors):
    some = dict(tensors)
    del some["fc1.bias"]
    with pytest.raises(ValueError, match="the tensor fc1.bias is missing"):
        weights.convert(some)
    with pytest.raises(ValueError, match="the tensor fc2.bias has no place"):
        weights.convert({**tensors, "fc2.bias": np.zeros(3)})


def test_histograms_count_colours():
    frames = np.zeros((1, 2, 4, 4, 3), np.uint8)
    frames[0, 1, :2] = (255, 32, 31)
    found = transnet.histograms(jnp.asarray(frames))
    assert found.shape == (1, 2, 512)
    assert found[0, 0, 0] == 16
    assert found[0, 1, 0] == 8 and found[0, 1, 7 * 64 + 8] == 8
