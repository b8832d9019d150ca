"""Latte's transformer against what the published one computed (`record_wan.py`), and its folders in
and out."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.weights import drawn_files
from tests.weights.drawn_files import assert_close
from vdm_jax.models import cost
from vdm_jax.models.packing import Sample, pack
from vdm_jax.weights import fetch, latte, published
from vdm_jax.weights.video_transformer import shapes

FILE = f"{published.DIFFUSERS}.safetensors"
TEXT = "text_embeddings"


@pytest.fixture(scope="module")
def golden():
    return drawn_files.read("latte")


@pytest.fixture(scope="module")
def loaded(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("latte")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        yield latte.read_folder(golden.write(folder / "published", published.DIFFUSERS))


def in_order(clip):
    """(b, c, f, h, w) as (b, f, h, w, c)."""
    return jnp.asarray(np.moveaxis(clip, 1, -1))


def test_outputs_and_gradients_are_those_of_the_published_network(loaded, golden, tmp_path):
    network, params = loaded
    logsnr = network.time.schedule.logsnrs[golden.values["timestep"]]
    cond = {TEXT: jnp.asarray(golden.values["text"])}

    @jax.jit
    def gradients(params, z):
        def total(params, z):
            output = network.apply({"params": params}, z, logsnr, cond)
            return jnp.mean(output**2), output

        return jax.grad(total, (0, 1), has_aux=True)(params, z)

    (by_path, z_gradient), output = gradients(params, in_order(golden.values["z"]))
    assert_close(output, in_order(golden.values["output"]))
    assert_close(z_gradient, in_order(golden.values["gradient/z"]), 1e-3)
    latte.write_folder(tmp_path / "gradients", network, by_path)
    found = safetensors.numpy.load_file(tmp_path / "gradients" / FILE)
    wanted = golden.gradients()
    assert len(wanted) == 6
    for name, gradient in wanted.items():
        assert_close(found[name], gradient, 1e-3, name)


def test_images_and_a_clip_do_not_mix(loaded):
    network, params = loaded
    z = jax.random.normal(jax.random.key(0), (1, 3, 4, 4, 4))
    texts = jax.random.normal(jax.random.key(1), (1, 2, 5, 8))
    logsnr = jnp.array([1.0])
    cond = {TEXT: texts[:, 0], f"image_{TEXT}": texts[:, 1:]}

    @jax.jit
    def run(z, cond):
        return network.apply({"params": params}, z, logsnr, cond, num_images=1)

    plain = run(z, cond)
    other_image = run(z.at[:, 2].add(1.0), cond)
    assert_close(other_image[:, :2], plain[:, :2], 1e-6)
    assert np.abs(other_image[:, 2] - plain[:, 2]).max() > 0.01
    other_clip = run(z.at[:, 0].add(1.0), cond)
    assert_close(other_clip[:, 2], plain[:, 2], 1e-6)
    assert np.abs(other_clip[:, 1] - plain[:, 1]).max() > 1e-4


def test_a_round_trip_is_equal_in_every_bit(golden, loaded, tmp_path):
    copy = tmp_path / "copy"
    latte.write_folder(copy, *loaded, sample_size=8)
    again = safetensors.numpy.load_file(copy / FILE)
    assert again.keys() == golden.weights.keys()
    for name, tensor in golden.weights.items():
        np.testing.assert_array_equal(again[name], tensor, name)
    config = json.loads((copy / "config.json").read_text())
    left_out = ("_diffusers_version", "video_length", "num_embeds_ada_norm")
    assert config == {k: v for k, v in golden.config.items() if k not in left_out}


def test_the_published_size():
    network = latte.from_config({"_class_name": latte.CLASS}, "config.json")
    leaves = jax.tree_util.tree_leaves_with_path(shapes(network))
    name, names = latte.name_function(network), set()
    for path, _ in leaves:
        found = name(jax.tree_util.keystr(path, simple=True, separator="/"))
        names |= {place.name for place in published.all_places(found)}
    assert sum(math.prod(leaf.shape) for _, leaf in leaves) == PARAMETERS
    assert len(names) == TENSORS


PARAMETERS, TENSORS = 1_057_246_880, 967  # of Latte-1


def test_attention_over_frames_and_places_is_counted(loaded):
    cond = {TEXT: jax.ShapeDtypeStruct((1, 5, 8), jnp.float32)}
    table = cost.level_table(loaded.network, (3, 8, 8, 4), cond)
    row = next(row for row in table if row.level == "blocks")
    assert row.attention == "space + text + time"
    width, frames, places, text = 8, 3, 16, 5
    tokens = frames * places
    products = 4 * tokens * (places + frames + text) * width
    linear = 2 * width * width * (8 * tokens + 2 * tokens + 2 * text)
    mlps = 2 * 4 * tokens * width * 32
    assert row.flops == 2 * (products + linear + mlps)


def test_packed_rows_are_refused(loaded):
    sample = Sample(np.zeros((1, 4, 4, 4), np.float32), 0.0, np.zeros((2, 8), np.float32))
    packed = pack([[sample]], loaded.network.patch, 4, 2)
    with pytest.raises(ValueError, match="attention = 'factorised': packed rows need 'full'"):
        loaded.network.apply({"params": loaded.params}, packed, method="packed")


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"norm_type": "layer_norm"}, "norm_type = 'layer_norm': allowed is 'ada_norm_single'"),
        ({"cross_attention_dim": 16}, "cross_attention_dim = 16: must be 8"),
        ({"sample_size": 128}, "sample_size = 128: must be below 128"),
        ({"windows": 3}, "windows = 3 is not understood"),
    ],
)
def test_a_value_that_is_not_understood_is_refused_by_name(changes, message, golden, tmp_path):
    with pytest.raises(ValueError, match=message):
        latte.read_config(golden.write(tmp_path, published.DIFFUSERS, **changes))


def test_another_network_is_not_written(loaded):
    with pytest.raises(ValueError, match="LatteTransformer3DModel has no such values"):
        latte.config(loaded.network.clone(flow=True))
