"""DiT's transformer against what the published one computed (`record_wan.py`)."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.weights import drawn_files
from tests.weights.drawn_files import assert_close
from vdm_jax.weights import dit, fetch, published
from vdm_jax.weights.video_transformer import shapes


@pytest.fixture(scope="module")
def golden():
    found = drawn_files.read("dit")
    copies = {
        name: found.weights[f"transformer_blocks.0.{name.split('.', 2)[2]}"]
        for name in found.weights
        if ".norm1.emb." in name
    }
    return found._replace(weights={**found.weights, **copies})


@pytest.fixture(scope="module")
def loaded(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("dit")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        yield dit.read_folder(golden.write(folder / "published", published.DIFFUSERS))


def in_order(images):
    """(b, c, h, w) as (b, 1, h, w, c)."""
    return jnp.asarray(np.moveaxis(images, 1, -1))[:, None]


def test_outputs_and_gradients_are_those_of_the_published_network(loaded, golden):
    network, params = loaded
    logsnr = network.time.schedule.logsnrs[golden.values["timestep"]]
    # The second image has no class.
    cond = {"label": jnp.array([3, 0]), "keep_label": jnp.array([True, False])}

    @jax.jit
    def gradients(params, z):
        def total(params, z):
            output = network.apply({"params": params}, z, logsnr, cond)
            return jnp.mean(output**2), output

        return jax.grad(total, (0, 1), has_aux=True)(params, z)

    (by_path, z_gradient), output = gradients(params, in_order(golden.values["z"]))
    assert_close(output, in_order(golden.values["output"]))
    assert_close(z_gradient, in_order(golden.values["gradient/z"]), 1e-3)
    wanted, name = golden.gradients(), dit.name_function(network)
    assert len(wanted) == 6
    found = {}
    for path, leaf in traverse_util.flatten_dict(by_path, sep="/").items():
        places, parts = published.all_places(name(path)), np.asarray(leaf)
        parts = parts if path.startswith("blocks/") else parts[None]
        for place, part in zip(places, parts, strict=True):
            found[place.name] = place.axes(published.from_ours(part, path))
    for key, gradient in wanted.items():
        assert_close(found[key], gradient, 1e-3, key)


def test_the_published_size():
    network = dit.from_config({"_class_name": dit.CLASS}, "config.json")
    leaves = jax.tree.leaves(shapes(network))
    copies = 27 * sum(
        math.prod(leaf.shape)
        for path, leaf in traverse_util.flatten_dict(shapes(network)).items()
        if path[0] == "time_embedding"
    )
    own = sum(math.prod(leaf.shape) for leaf in leaves)
    assert (own, own + copies) == (674_834_720, 749_826_464)  # the latter is diffusers' of DiT-XL/2


def test_a_block_with_another_embedding_is_refused(golden, tmp_path):
    name = "transformer_blocks.1.norm1.emb.class_embedder.embedding_table.weight"
    weights = {**golden.weights, name: golden.weights[name] + 1}
    folder = golden._replace(weights=weights).write(tmp_path, published.DIFFUSERS)
    with pytest.raises(ValueError, match=r"transformer_blocks.1.*must be a copy"):
        dit.read_folder(folder)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"norm_type": "layer_norm"}, "norm_type = 'layer_norm': allowed is 'ada_norm_zero'"),
        ({"windows": 3}, "windows = 3 is not understood"),
    ],
)
def test_a_value_that_is_not_understood_is_refused_by_name(changes, message, golden, tmp_path):
    with pytest.raises(ValueError, match=message):
        dit.read_config(golden.write(tmp_path, published.DIFFUSERS, **changes))
