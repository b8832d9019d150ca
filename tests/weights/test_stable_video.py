"""The U-Net of Stable Video Diffusion against diffusers, on what `record_stable_video` recorded,
and its folder in and out; the start from an image model."""

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from einops import rearrange
from flax import traverse_util

from tests.weights import drawn_weights
from tests.weights.golden_files import assert_close
from vdm_jax.models.blocks.slots import Slots
from vdm_jax.weights import fetch, published, stable_video

GOLDEN = Path(__file__).parent / "golden" / "stable_video_unet.safetensors"


class Recorded(NamedTuple):
    """A folder, its config.json and tensors, and what diffusers computed."""

    folder: Path
    config: dict[str, Any]
    weights: dict[str, np.ndarray]
    arrays: dict[str, np.ndarray]


def write(folder, config, weights):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(weights, folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    with safetensors.safe_open(GOLDEN, "numpy") as file:
        metadata = json.loads(file.metadata()["recorded"])
    config, shapes, factors = (json.loads(metadata[k]) for k in ("config", "shapes", "factors"))
    weights = drawn_weights.draw_all(shapes, factors)
    folder = tmp_path_factory.mktemp("unet") / "folder"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder.parent / "cache")
        arrays = safetensors.numpy.load_file(GOLDEN)
        yield Recorded(write(folder, config, weights), config, weights, arrays)


@pytest.fixture(scope="module")
def loaded(recorded):
    return stable_video.read_folder(recorded.folder)


@pytest.fixture(scope="module")
def inputs(recorded):
    """z, log-SNR and condition of what was recorded."""
    arrays = jax.tree.map(jnp.asarray, recorded.arrays)
    sample = rearrange(arrays["sample"], "b f c h w -> b f h w c")
    z, still = jnp.split(sample, 2, axis=-1)
    numbers = dict(zip(stable_video.NUMBERS, arrays["numbers"].T, strict=True))
    return z, still, -8 * arrays["time"], {stable_video.CONTEXT: arrays["text"], **numbers}


class EveryFrame(NamedTuple):
    """Other latents for each frame, as the recording has them."""

    key: str = stable_video.STILL
    ADDED = False

    @property
    def keys(self):
        return (self.key,)

    def __call__(self, cond, z):
        return cond[self.key]


def test_output_and_gradients_are_those_of_diffusers(recorded, loaded, inputs):
    z, still, logsnr, cond = inputs
    arrays, network = recorded.arrays, loaded.network.clone(videos=(EveryFrame(),))
    target = rearrange(arrays["target"], "b f c h w -> b f h w c")

    @jax.jit
    def run(params, z, still):
        def loss(params, z, still):
            entries = {**cond, stable_video.STILL: still}
            output = network.apply({"params": params}, z, logsnr, entries)
            return jnp.mean((output - target) ** 2), output

        return jax.grad(loss, (0, 1, 2), has_aux=True)(params, z, still)

    (of_params, of_z, of_still), output = run(loaded.params, z, still)
    assert_close(output, rearrange(arrays["output"], "b f c h w -> b f h w c"))
    of_sample = rearrange(jnp.concatenate([of_z, of_still], -1), "b f h w c -> b f c h w")
    assert_close(of_sample, arrays["gradient/sample"], 1e-3)
    names = stable_video.name_function(network)
    wanted = {key.removeprefix("gradient/") for key in arrays if key.startswith("gradient/")}
    wanted.remove("sample")
    sums = [arrays[f"gradient/{name}"] for name in wanted]
    largest = max(abs(one.item()) for one in sums if one.size == 1)
    for path, gradient in traverse_util.flatten_dict(of_params, sep="/").items():
        (place,) = published.all_places(names(path))
        if place.name in wanted:
            wanted.remove(place.name)
            expected = arrays[f"gradient/{place.name}"]
            found = published.from_ours(np.asarray(gradient), path).reshape(expected.shape)
            if expected.size == 1:
                # A mixing factor's gradient is one sum, which may cancel almost to nothing: its
                # scale is that of the other factors' sums.
                assert abs(found.item() - expected.item()) <= 1e-3 * largest
            else:
                assert_close(found, expected, 1e-3)
    assert not wanted


def test_the_folder_is_written_back_bit_by_bit(recorded, loaded, tmp_path):
    network, params = loaded
    out = tmp_path / "written"
    stable_video.write_folder(out, network, params, sample_size=(8, 8), num_frames=3)
    found = safetensors.numpy.load_file(out / "diffusion_pytorch_model.safetensors")
    assert found.keys() == recorded.weights.keys()
    for name, tensor in found.items():
        np.testing.assert_array_equal(tensor, recorded.weights[name], err_msg=name)
    assert stable_video.read_config(out) == network
    written = json.loads((out / "config.json").read_text())
    written["sample_size"] = 8
    assert {key: recorded.config[key] for key in written} == written


def test_the_real_size():
    empty = {"_class_name": stable_video.CLASS}
    leaves = jax.tree.leaves(stable_video.shapes(stable_video.from_config(empty, Path("config"))))
    assert sum(math.prod(leaf.shape) for leaf in leaves) == 1_524_623_082
    assert len(leaves) == 1428


def test_a_clip_starts_as_images(loaded, inputs):
    """An image model's parameters, and fresh ones for the layers over frames: the output for each
    frame is the image model's."""
    z, still, logsnr, cond = inputs
    cond = {**cond, stable_video.STILL: still[:, :1]}
    network, params = loaded
    fresh = nn.meta.unbox(network.init(jax.random.key(0), z, logsnr, cond)["params"])
    held = traverse_util.flatten_dict(params, sep="/")
    own = {path: leaf for path, leaf in held.items() if "temporal" not in path}
    inflated = {**traverse_util.flatten_dict(fresh, sep="/"), **own}
    assert len(inflated) == len(held) > len(own)

    def run(network, flat):
        params = traverse_util.unflatten_dict(flat, sep="/")
        return jax.jit(network.apply)({"params": params}, z, logsnr, cond)

    wanted = run(network.clone(slots=Slots()), own)
    assert_close(run(network, inflated), np.asarray(wanted), 1e-6)
    # The recorded layers over frames change every frame.
    changed = np.abs(run(network, held) - wanted).max(axis=(0, 2, 3, 4))
    assert changed.min() > 0.05 * np.abs(wanted).max()


def test_images_beside_a_clip_are_not_mixed_with_it(loaded, inputs):
    z, still, logsnr, cond = inputs
    network, params = loaded
    context = cond[stable_video.CONTEXT]
    cond = {
        **cond,
        stable_video.STILL: still[:, :1],
        f"image_{stable_video.CONTEXT}": 2 * context[:, None],
    }
    run = jax.jit(lambda p, z: network.apply({"params": p}, z, logsnr, cond, num_images=1))
    moves = ((0, 0.0), (2, 1.0), (0, 1.0))
    usual, moved_image, moved_frame = (run(params, z.at[:, i].add(by)) for i, by in moves)
    scale = np.abs(usual).max()
    np.testing.assert_allclose(usual[:, :2], moved_image[:, :2], atol=1e-6 * scale)
    np.testing.assert_allclose(usual[:, 2], moved_frame[:, 2], atol=1e-6 * scale)
    assert np.abs(usual[:, 1] - moved_frame[:, 1]).max() > 1e-3 * scale


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet3DConditionModel"}, "allowed are"),
        ({"transformer_layers_per_block": 2}, "transformer_layers_per_block = 2: allowed is 1"),
        ({"addition_time_embed_dim": 9}, "input_dim = 24: must be 27"),
        ({"down_block_types": ["DownBlock3D"] * 2}, "'DownBlock3D': allowed are"),
        ({"up_block_types": ["UpBlockSpatioTemporal"] * 2}, "must mirror"),
        ({"block_out_channels": [32, 48]}, "norm_num_groups = 32: must divide"),
        ({"new_value": 3}, "new_value = 3 is not understood"),
        ({"layers_per_block": 2}, "lacks .*down_blocks.0"),
    ],
)
def test_a_config_that_is_not_understood_is_refused_by_name(recorded, tmp_path, change, message):
    folder = write(tmp_path / "changed", {**recorded.config, **change}, recorded.weights)
    with pytest.raises(ValueError, match=message):
        stable_video.read_folder(folder)


def test_a_network_that_diffusers_cannot_compute_is_not_written(loaded, tmp_path):
    network, params = loaded
    with pytest.raises(ValueError, match="slots: diffusers' class .* has no such value"):
        stable_video.write_folder(tmp_path / "out", network.clone(slots=Slots()), params)
