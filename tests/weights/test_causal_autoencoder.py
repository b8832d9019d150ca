"""Wan's video autoencoder against what the published one computed (`record_wan.py`), in parts and
whole, and its folders in and out."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from tests.weights import drawn_files
from tests.weights.drawn_files import assert_close
from vdm_jax.models import autoencoder_tiling
from vdm_jax.models.causal_autoencoder import CausalAutoencoder
from vdm_jax.weights import causal_autoencoder, fetch, published

FILE = f"{published.DIFFUSERS}.safetensors"


@pytest.fixture(scope="module")
def golden():
    return drawn_files.read("wan_autoencoder")


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vae")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        yield golden.write(folder / "published", published.DIFFUSERS)


@pytest.fixture(scope="module")
def loaded(folder):
    return causal_autoencoder.read_folder(folder)


@pytest.fixture(scope="module")
def computed(loaded, golden):
    """Mean, log-variance and decoded clip, the loss's gradients, and all compiled at once."""
    network, params = loaded

    @jax.jit
    def run(params, clip):
        def total(params, clip):
            posterior = network.apply({"params": params}, clip, method="encode")
            decoded = network.apply({"params": params}, posterior.mode(), method="decode")
            loss = jnp.mean(decoded**2) + jnp.mean(posterior.log_variance)
            return loss, (posterior, decoded)

        return jax.grad(total, (0, 1), has_aux=True)(params, clip)

    return run(params, in_order(golden.values["clip"]))


@pytest.fixture(scope="module")
def at_once(loaded, golden):
    """The same in one part after the first frame."""
    network = loaded.network.clone(at_once=2)

    @jax.jit
    def run(params, clip, latents):
        variables = {"params": params}
        posterior = network.apply(variables, clip, method="encode")
        return posterior, network.apply(variables, latents, method="decode")

    return run(loaded.params, in_order(golden.values["clip"]), in_order(golden.values["mean"]))


def in_order(clip):
    """(b, c, f, h, w) as (b, f, h, w, c)."""
    return jnp.asarray(np.moveaxis(clip, 1, -1))


def test_latents_and_clips_are_those_of_the_published_network(computed, golden):
    _, (posterior, decoded) = computed
    assert_close(posterior.mean, in_order(golden.values["mean"]))
    assert_close(posterior.log_variance, in_order(golden.values["log_variance"]))
    assert_close(decoded, in_order(golden.values["decoded"]))
    # The recorded clip has values that were cut off, as published, and others.
    assert 0.001 < np.mean(np.abs(golden.values["decoded"]) == 1) < 0.5


def test_gradients_are_those_of_the_published_network(computed, loaded, golden, tmp_path):
    (by_path, clip_gradient), _ = computed
    assert_close(clip_gradient, in_order(golden.values["gradient/clip"]), 1e-3)
    causal_autoencoder.write_folder(tmp_path / "gradients", loaded.network, by_path)
    found = safetensors.numpy.load_file(tmp_path / "gradients" / FILE)
    wanted = golden.gradients()
    assert len(wanted) == 6
    for name, gradient in wanted.items():
        assert_close(found[name], gradient, 1e-3, name)


def test_parts_equal_the_whole(computed, at_once):
    _, (posterior, decoded) = computed
    whole, decoded_at_once = at_once
    assert_close(posterior.mean, whole.mean, 1e-5)
    assert_close(posterior.log_variance, whole.log_variance, 1e-5)
    assert_close(decoded, decoded_at_once, 1e-5)


def test_a_clip_that_is_not_held_whole_is_computed_in_parts(loaded, golden, at_once):
    network, params = loaded
    latents = in_order(golden.values["mean"])

    @jax.jit
    def part(params, latents, kept):
        return network.apply({"params": params}, latents, kept, method="decode_part")

    found, kept = [], None
    for number in range(latents.shape[1]):
        frames, kept = part(params, latents[:, number : number + 1], kept)
        found.append(frames)
    assert [frames.shape[1] for frames in found] == [1, 4, 4]
    assert_close(np.concatenate(found, axis=1), at_once[1], 1e-5)


def test_a_frame_depends_on_no_later_one(loaded, golden, at_once):
    network, params = loaded
    latents = in_order(golden.values["mean"])
    first = network.apply({"params": params}, latents[:, :1], method="decode")
    assert_close(first, at_once[1][:, :1], 1e-5)
    assert first.shape == (1, 1, 16, 24, 3)  # an image is a clip of one frame


def test_memory_of_decoding_does_not_depend_on_the_length(loaded):
    network, params = loaded

    def temporary(frames):
        latents = jax.ShapeDtypeStruct((1, frames, 8, 8, 4), jnp.float32)

        def decode(params, latents):
            # What is kept of the result is not the question here.
            return network.apply({"params": params}, latents, method="decode").mean()

        compiled = jax.jit(decode).lower(params, latents).compile()
        result = 4 * (4 * frames - 3) * 64 * 64 * 3
        return compiled.memory_analysis().temp_size_in_bytes - 2 * result

    assert temporary(9) < 1.1 * temporary(3)


def test_tiles_blend_far_from_their_borders(loaded):
    """The published network's attention sees all of a frame, so the tiles are of one without."""
    network, params = loaded
    params = jax.tree.map(lambda leaf: leaf, params)
    for part in ("encoder", "decoder"):
        for leaf in ("kernel", "bias"):
            attention = dict(params[part]["mid_attention"]["out"])
            attention[leaf] = np.zeros_like(attention[leaf])
            params[part]["mid_attention"]["out"] = attention
    latents = jax.random.normal(jax.random.key(0), (1, 1, 4, 24, 4))

    @jax.jit
    def run(latents):
        def decode(latents):
            return network.apply({"params": params}, latents, method="decode")

        tiled = autoencoder_tiling.tiled(decode, latents, tile=20, overlap=16, grows=network.factor)
        return decode(latents), tiled

    whole, tiled = run(latents)
    assert tiled.shape == whole.shape == (1, 1, 32, 192, 3)
    # 12 latents from the end of a tile.
    assert_close(tiled[:, :, :, :32], whole[:, :, :, :32], 1e-4)
    assert np.abs(tiled - whole).mean() < 0.02


@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16])
def test_a_round_trip_is_equal_in_every_bit(dtype, golden, tmp_path):
    weights = {name: tensor.astype(dtype) for name, tensor in golden.weights.items()}
    written = golden._replace(weights=weights).write(tmp_path / "first", published.DIFFUSERS)
    network, params = causal_autoencoder.read_folder(written)
    copy = tmp_path / "copy"
    causal_autoencoder.write_folder(copy, network, params, dtype)
    again = safetensors.numpy.load_file(copy / FILE)
    assert again.keys() == weights.keys()
    for name, tensor in weights.items():
        assert again[name].dtype == dtype
        np.testing.assert_array_equal(again[name], tensor, name)
    config = json.loads((copy / "config.json").read_text())
    assert config == {k: v for k, v in golden.config.items() if k != "_diffusers_version"}


def test_original_names_are_read(golden, loaded, tmp_path):
    weights = {as_originally(name): tensor for name, tensor in golden.weights.items()}
    assert not weights.keys() & golden.weights.keys()
    file = tmp_path / "wan_2.1_vae.safetensors"
    safetensors.numpy.save_file(weights, file)
    _, params = causal_autoencoder.read_file(file, loaded.network)
    jax.tree.map(np.testing.assert_array_equal, params, loaded.params)


def as_originally(name):
    """The original name of a tensor of the recorded network, whose levels have 1 block, or 2 in
    the decoder."""
    part, *rest = name.split(".")
    if part == "quant_conv":
        return ".".join(["conv1", *rest])
    if part == "post_quant_conv":
        return ".".join(["conv2", *rest])
    if rest[0] in ("conv_in", "norm_out", "conv_out"):
        place = {"conv_in": "conv1", "norm_out": "head.0", "conv_out": "head.2"}[rest[0]]
        return ".".join([part, place, *rest[1:]])
    if rest[0] == "mid_block":
        number = 1 if rest[1] == "attentions" else 2 * int(rest[2])
        place, rest = f"middle.{number}", rest[3:]
    elif rest[0] == "down_blocks":
        place, rest = f"downsamples.{rest[1]}", rest[2:]
    else:
        number = 3 * int(rest[1]) + (2 if rest[2] == "upsamplers" else int(rest[3]))
        place, rest = f"upsamples.{number}", rest[4:]
    inner = {"norm1": "residual.0", "conv1": "residual.2", "norm2": "residual.3"}
    inner |= {"conv2": "residual.6", "conv_shortcut": "shortcut"}
    return ".".join([part, place, inner.get(rest[0], rest[0]), *rest[1:]])


def test_the_published_size():
    network = CausalAutoencoder()
    flat = traverse_util.flatten_dict(causal_autoencoder.shapes(network), sep="/")
    names = {causal_autoencoder.name_function(network)(path).name for path in flat}
    assert sum(math.prod(leaf.shape) for leaf in flat.values()) == 126_892_531
    assert len(names) == len(flat) == 194
    assert (network.factor, network.frame_factor) == (8, 4)
    assert network.latent_shape((81, 480, 832, 3)) == (21, 60, 104, 16)


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"_class_name": "AutoencoderKL"}, r"_class_name = 'AutoencoderKL': allowed are"),
        ({"is_residual": True}, "is_residual = True: allowed is False"),
        ({"patch_size": 2}, "patch_size = 2: allowed is None"),
        ({"attn_scales": [0.5]}, r"attn_scales = \[0.5\]: allowed is"),
        ({"clips": True}, "clips = True is not understood"),
        ({"dim_mult": [2, 2, 2, 2]}, "dim_mult = .*: the first must be 1"),
        ({"temperal_downsample": [True]}, "temperal_downsample = .*one entry less"),
        ({"latents_mean": [0.0]}, "latents_mean has 1 numbers: must have z_dim = 4"),
        ({"scale_factor_spatial": 16}, "scale_factor_spatial = 16: the levels make it 8"),
    ],
)
def test_a_value_that_is_not_understood_is_refused_by_name(changes, message, golden, tmp_path):
    with pytest.raises(ValueError, match=message):
        causal_autoencoder.read_config(golden.write(tmp_path, published.DIFFUSERS, **changes))


@pytest.mark.parametrize(
    "shape,message",
    [
        ((1, 8, 16, 16, 3), "frames = 8: must be 1 more than a multiple of 4"),
        ((1, 9, 16, 12, 3), "16 x 12 pixels: must be multiples of 8"),
        ((1, 9, 16, 16, 4), "channels = 4: the autoencoder has 3"),
    ],
)
def test_clips_that_cannot_be_encoded_are_refused(shape, message, loaded):
    with pytest.raises(ValueError, match=message):
        loaded.network.check(shape)
