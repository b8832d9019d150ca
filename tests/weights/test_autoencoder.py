"""The autoencoders against what the published ones computed (`record_autoencoder.py`), and their
folders in and out."""

import json
import math
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from flax import traverse_util

from tests.weights import drawn_weights
from vdm_jax.models import autoencoder_tiling
from vdm_jax.models.autoencoder import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    AutoencoderTiny,
)
from vdm_jax.weights import autoencoder, fetch, published

GOLDEN = Path(__file__).parent / "golden"
KL, BARE, TEMPORAL, TINY = (
    "autoencoder_kl",
    "autoencoder_kl_bare",
    "autoencoder_temporal",
    "autoencoder_tiny",
)
FILE = f"{published.DIFFUSERS}.safetensors"


@pytest.fixture(scope="module")
def golden():
    """A function case -> (configuration, published weights, inputs and results)."""

    def read(case):
        path = GOLDEN / f"{case}.safetensors"
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata()
        config, shapes, factors = (
            json.loads(metadata[name]) for name in ("config", "shapes", "factors")
        )
        weights = drawn_weights.draw_all(shapes, factors)
        return config, weights, safetensors.numpy.load_file(path)

    return read


@pytest.fixture
def write(tmp_path, monkeypatch):
    """A function (configuration, weights) -> a folder as it is published."""
    monkeypatch.setattr(fetch, "CACHE", tmp_path / "cache")
    numbers = iter(range(100))

    def written(config, weights):
        folder = tmp_path / f"vae{next(numbers)}"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        safetensors.numpy.save_file(weights, folder / FILE)
        return folder

    return written


def ours(images):
    """(n, c, h, w) as (n, h, w, c)."""
    return jnp.asarray(images.transpose(0, 2, 3, 1))


def assert_close(found, published, relative=1e-4):
    """Within `relative` of the largest published value; `published` is (n, c, h, w)."""
    found, wanted = np.asarray(found), np.asarray(ours(published))
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= relative * np.abs(wanted).max()


@pytest.mark.parametrize("case", [KL, BARE, TEMPORAL, TINY])
def test_latents_and_images_are_those_of_the_published_network(case, golden, write):
    config, weights, recorded = golden(case)
    network, params = autoencoder.read_folder(write(config, weights))
    assert type(network).__name__ == config["_class_name"]

    @jax.jit
    def run(params, images, latents):
        variables = {"params": params}
        posterior = network.apply(variables, images, method="encode")
        frames = len(images) if case == TEMPORAL else 1
        return posterior, network.apply(variables, latents, frames, method="decode")

    posterior, decoded = run(params, ours(recorded["images"]), ours(recorded["mean"]))
    assert_close(posterior.mode(), recorded["mean"])
    assert_close(decoded, recorded["decoded"])
    if case == TINY:
        assert posterior.log_variance is None
    else:
        assert_close(posterior.log_variance, recorded["log_variance"])


def test_gradients_are_those_of_the_published_network(golden, write, tmp_path):
    config, weights, recorded = golden(KL)
    network, params = autoencoder.read_folder(write(config, weights))

    @jax.jit
    def gradients(params, images):
        def total(params, images):
            posterior = network.apply({"params": params}, images, method="encode")
            decoded = network.apply({"params": params}, posterior.mode(), method="decode")
            return jnp.mean(decoded**2) + jnp.mean(posterior.log_variance)

        return jax.grad(total, (0, 1))(params, images)

    by_path, image_gradient = gradients(params, ours(recorded["images"]))
    assert_close(image_gradient, recorded["gradient/images"], 1e-3)
    autoencoder.write_folder(tmp_path / "gradients", network, by_path)
    found = safetensors.numpy.load_file(tmp_path / "gradients" / FILE)
    names = [name for name in recorded if name.startswith("gradient/") and "images" not in name]
    assert len(names) == 4
    for name in names:
        wanted = recorded[name]
        difference = np.abs(found[name.removeprefix("gradient/")] - wanted).max()
        assert difference <= 1e-3 * np.abs(wanted).max(), name


def test_tiles_blend_as_those_of_the_published_network(golden, write):
    config, weights, recorded = golden(KL)
    network, params = autoencoder.read_folder(write(config, weights))

    @jax.jit
    def tiled(params, latents):
        def decode(latents):
            return network.apply({"params": params}, latents, method="decode")

        return autoencoder_tiling.tiled(decode, latents, tile=8, overlap=2, grows=network.factor)

    found = tiled(params, ours(recorded["tall"]))
    # Further down and to the right the published code adds tiles that are smaller than the others.
    assert_close(found[:, :24, :12], recorded["tiled"][:, :, :24, :12])


@pytest.mark.parametrize("case", [KL, BARE, TEMPORAL, TINY])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_round_trip_is_equal_in_every_bit(case, dtype, golden, write, tmp_path):
    config, weights, _ = golden(case)
    weights = {name: tensor.astype(dtype) for name, tensor in weights.items()}
    network, params = autoencoder.read_folder(write(config, weights))
    copy = tmp_path / "copy"
    autoencoder.write_folder(copy, network, params, dtype)
    again = safetensors.numpy.load_file(copy / FILE)
    assert again.keys() == weights.keys()
    for name, tensor in weights.items():
        assert again[name].dtype == dtype
        np.testing.assert_array_equal(again[name], tensor, name)
    assert autoencoder.read_config(copy) == autoencoder.read_config(write(config, weights))
    written = json.loads((copy / "config.json").read_text())
    # What neither encode nor decode depends on is left to the published class's defaults.
    left_out = {"sample_size", "force_upcast", "latents_mean", "latents_std", "latent_magnitude"}
    left_out |= {"latent_shift", "_diffusers_version"} | (
        {"block_out_channels"} if case == TINY else set()
    )
    assert written == {name: value for name, value in config.items() if name not in left_out}


def test_weights_are_kept_in_the_dtype_asked_for(golden, write):
    config, weights, _ = golden(TINY)
    network, params = autoencoder.read_folder(write(config, weights), jnp.bfloat16)
    assert network.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(jnp.bfloat16)}
    images = jnp.zeros((1, 8, 8, 3))
    mean = jax.eval_shape(lambda: network.apply({"params": params}, images, method="encode").mode())
    assert mean.dtype == jnp.float32


@pytest.mark.parametrize(
    "network,parameters,tensors",
    [
        (AutoencoderKL(), 83_653_863, 248),
        (AutoencoderKLTemporalDecoder(), 97_742_847, 374),
        (AutoencoderTiny(), 2_445_063, 134),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, int) else "",
)
def test_published_sizes(network, parameters, tensors):
    flat = traverse_util.flatten_dict(autoencoder.shapes(network), sep="/")
    assert sum(math.prod(leaf.shape) for leaf in flat.values()) == parameters
    assert len({autoencoder.name(path).name for path in flat}) == len(flat) == tensors


def test_the_reach_of_the_published_temporal_decoder():
    # 14 blocks of two convolutions over three frames, and the last convolution.
    assert AutoencoderKLTemporalDecoder().frame_reach == 29
    assert AutoencoderKL().frame_reach == AutoencoderTiny().frame_reach == 0


# --- other names ----------------------------------------------------------------------------------


def as_before_2023(name):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    for new, former in old.items():
        name = name.replace(f"attentions.0.{new}.", f"attentions.0.{former}.")
    return name


def as_originally(name, levels=2):
    """The name in the original files."""
    inner = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
    for new, former in inner.items():
        name = name.replace(f"mid_block.attentions.0.{new}.", f"mid.attn_1.{former}.")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}", name)
    name = re.sub(r"(down|up)_blocks\.(\d)\.resnets", r"\1.\2.block", name)
    name = re.sub(r"(down|up)_blocks\.(\d)\.(\w+)rs\.0", r"\1.\2.\3", name)
    name = re.sub(r"\.up\.(\d)", lambda found: f".up.{levels - 1 - int(found[1])}", name)
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    return f"first_stage_model.{name}"


@pytest.mark.parametrize("former", [as_before_2023, as_originally])
def test_older_names_are_read(former, golden, write):
    config, weights, _ = golden(KL)
    _, wanted = autoencoder.read_folder(write(config, weights))
    old = {former(name): tensor for name, tensor in weights.items()}
    assert len(old.keys() & weights.keys()) < len(weights)
    if former is as_originally:
        for name in [name for name in old if re.search(r"attn_1\.(q|k|v|proj_out)\.weight", name)]:
            old[name] = old[name][:, :, None, None]
    _, found = autoencoder.read_folder(write(config, old))
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_a_configuration_of_before_2023_has_the_defaults(golden, write):
    config, weights, _ = golden(KL)
    # As in the files of Stable Diffusion 1.5.
    names = ("in_channels", "out_channels", "down_block_types", "up_block_types", "act_fn")
    names += ("block_out_channels", "layers_per_block", "latent_channels", "norm_num_groups")
    names += ("_class_name", "sample_size")
    short = {name: config[name] for name in names}
    network = autoencoder.read_config(write(short, weights))
    assert network == autoencoder.read_config(write(config, weights))
    assert network.use_quant_conv and network.attention and network.scaling_factor == 0.18215


# --- bad folders ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case,changes,message",
    [
        (KL, {"_class_name": "VQModel"}, r"_class_name = 'VQModel': allowed are .*AutoencoderKL"),
        (KL, {"act_fn": "gelu"}, r"act_fn = 'gelu': allowed are \('silu',\)"),
        (KL, {"latents_mean": [0.0] * 4}, r"latents_mean = \(.*\): allowed are \(None,\)"),
        (KL, {"upcast_norm": True}, r"upcast_norm = True: AutoencoderKL is not known to have"),
        (KL, {"norm_num_groups": 3}, r"block_out_channels = \(8, 16\): must be multiples of 3"),
        (
            KL,
            {"up_block_types": ["AttnUpDecoderBlock2D", "UpDecoderBlock2D"]},
            r"up_block_types = \('AttnUpDecoderBlock2D'.*: allowed is UpDecoderBlock2D for each",
        ),
        (TEMPORAL, {"layers_per_block": 1}, r"layers_per_block = 1: allowed are \(2,\)"),
        (TEMPORAL, {"norm_num_groups": 8}, "norm_num_groups = 8: AutoencoderKLTemporalDecoder is"),
        (TINY, {"upsample_fn": "bilinear"}, "upsample_fn = 'bilinear': allowed are"),
        (TINY, {"decoder_block_out_channels": [8, 8, 16]}, r"hold \[8, 16\]: all layers must have"),
        (TINY, {"num_encoder_blocks": [1, 2]}, r"must be as many as num_encoder_blocks = \(1, 2\)"),
    ],
)
def test_a_value_that_is_not_understood_is_refused_by_name(case, changes, message, golden, write):
    config, weights, _ = golden(case)
    with pytest.raises(ValueError, match=message):
        autoencoder.read_folder(write({**config, **changes}, weights))


def test_tensors_that_do_not_fit_are_refused_by_name(golden, write):
    config, weights, _ = golden(KL)

    def read(changed, config=config):
        return autoencoder.read_folder(write(config, changed))

    with pytest.raises(ValueError, match=r"lacks the tensor decoder\.conv_out\.bias"):
        read({name: t for name, t in weights.items() if name != "decoder.conv_out.bias"})
    with pytest.raises(ValueError, match=r"has no loss\.discriminator"):
        read({**weights, "loss.discriminator": weights["decoder.conv_out.bias"]})
    with pytest.raises(ValueError, match=r"has no post_quant_conv\.bias, post_quant_conv\.weight"):
        read(weights, {**config, "use_post_quant_conv": False})
    with pytest.raises(ValueError, match=r"conv_in\.weight has shape .*config\.json asks for"):
        read({**weights, "encoder.conv_in.weight": weights["decoder.conv_in.weight"]})


def test_damaged_files_are_refused_by_name(golden, write):
    config, weights, _ = golden(TINY)
    folder = write(config, weights)
    file = folder / FILE
    content = file.read_bytes()
    file.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=rf"{FILE}: cannot be read.*truncated"):
        autoencoder.read_folder(folder)
    file.rename(folder / f"{published.DIFFUSERS}-00001-of-00002.safetensors")
    index = {
        "weight_map": dict.fromkeys(weights, f"{published.DIFFUSERS}-00002-of-00002.safetensors")
    }
    (folder / f"{FILE}.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match="00002-of-00002.safetensors: no such file"):
        autoencoder.read_folder(folder)
    (folder / f"{FILE}.index.json").unlink()
    (folder / f"{published.DIFFUSERS}.bin").write_bytes(content)
    with pytest.raises(FileNotFoundError, match=r"\.bin: a pickle"):
        autoencoder.read_folder(folder)
    with pytest.raises(FileNotFoundError, match="config.json: no such file"):
        autoencoder.read_folder(folder / "elsewhere")
