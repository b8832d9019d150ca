"""Latent U-Net, ControlNet and motion modules against diffusers, on golden files that
`record_unet` writes, and their folders in and out."""

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from einops import rearrange
from flax import traverse_util

from tests.weights.golden_unet import Golden, load_golden, write
from vdm_jax.models.blocks.settings import LatentSettings
from vdm_jax.models.blocks.slots import Slots
from vdm_jax.models.controlnet import Control, ControlNet
from vdm_jax.models.latent_unet import LatentUNet
from vdm_jax.models.motion_module import MotionModules
from vdm_jax.weights import controlnet, fetch, latent_unet, motion_adapter

WITHIN, GRADIENT_WITHIN = 1e-4, 1e-3  # of the largest value


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    """A function from the name of a golden file to its content."""
    return functools.cache(lambda name: load_golden(name, tmp_path_factory.mktemp(name) / "folder"))


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "CACHE", tmp_path / "cache")


def to_ours(array: np.ndarray, batch: int) -> np.ndarray:
    return rearrange(array, "(b f) c h w -> b f h w c", b=batch)


def inputs(arrays: dict[str, np.ndarray], network: LatentUNet) -> tuple[Any, ...]:
    """z, log-SNR and condition of what was recorded."""
    logsnr = network.time.schedule.logsnrs[arrays["timestep"]]
    return to_ours(arrays["z"], len(logsnr)), logsnr, {network.text: arrays["text"]}


def assert_close(found: Any, expected: np.ndarray, within: float = WITHIN) -> None:
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= within * np.abs(expected).max()


def assert_same_files(folder: Path, expected: Golden, but: tuple[str, ...] = ()) -> None:
    found = safetensors.numpy.load_file(folder / "diffusion_pytorch_model.safetensors")
    assert found.keys() == expected.weights.keys()
    for name, tensor in found.items():
        if not name.endswith(but or "-"):
            assert tensor.dtype == np.float32
            np.testing.assert_array_equal(tensor, expected.weights[name], err_msg=name)


@pytest.mark.parametrize("name", ["unet_1", "unet_2"])
def test_a_unet_is_read_computes_and_is_written(golden, name, tmp_path):
    recorded = golden(name)
    network, params = latent_unet.read_folder(recorded.folder)
    z, logsnr, cond = inputs(recorded.arrays, network)
    # Every frame is computed as an image: twice the same one.
    twice = np.concatenate([z, z], axis=1)
    output = jax.jit(network.apply)({"params": params}, twice, logsnr, cond)
    for frame in range(2):
        assert_close(output[:, frame : frame + 1], to_ours(recorded.arrays["output"], len(z)))
    latent_unet.write_folder(tmp_path / "written", network, params)
    assert_same_files(tmp_path / "written", recorded)
    assert latent_unet.read_config(tmp_path / "written") == network
    written = json.loads((tmp_path / "written/config.json").read_text())
    assert {key: recorded.config[key] for key in written} == {
        key: recorded.config[key] if _same(recorded.config[key], value) else value
        for key, value in written.items()
    }


def _same(recorded: Any, written: Any) -> bool:
    """Equal, where one number may stand for a list of equal ones."""
    lists = [value if isinstance(value, list) else [value] for value in (recorded, written)]
    longest = max(map(len, lists))
    return len({json.dumps(v * (longest if len(v) == 1 else 1)) for v in lists}) == 1


def test_gradients_are_those_of_diffusers(golden):
    recorded = golden("unet_1")
    arrays = recorded.arrays
    network, params = latent_unet.read_folder(recorded.folder)
    z, logsnr, cond = inputs(arrays, network)
    target = to_ours(arrays["target"], len(z))

    def loss(params, z):
        return jnp.mean((network.apply({"params": params}, z, logsnr, cond) - target) ** 2)

    of_params, of_z = jax.jit(jax.grad(loss, (0, 1)))(params, z)
    assert_close(of_z, to_ours(arrays["gradient/z"], len(z)), GRADIENT_WITHIN)
    names = latent_unet.name_function(network)
    wanted = {key.removeprefix("gradient/") for key in arrays if key.startswith("gradient/")}
    compared = set()
    for path, gradient in traverse_util.flatten_dict(of_params, sep="/").items():
        name = names(path) if isinstance(names(path), str) else names(path).name
        if name in wanted:
            compared.add(name)
            published = arrays[f"gradient/{name}"]
            axes = (*range(2, published.ndim), 1, 0) if path.endswith("kernel") else (0,)
            transposed = published.transpose(axes).reshape(gradient.shape)
            assert_close(gradient, transposed, GRADIENT_WITHIN)
    assert compared == wanted - {"z"}


@pytest.fixture(scope="module")
def controlled(golden):
    """A function from the fields of each Control to the compiled U-Net with them: a function of
    further entries of the condition."""
    network, params = latent_unet.read_folder(golden("unet_1").folder)
    recorded = golden("controlnet")
    control, control_params = controlnet.read_folder(recorded.folder)
    z, logsnr, cond = inputs(recorded.arrays, network)
    cond["edges"] = cond["lines"] = to_ours(recorded.arrays["hint"], len(z))
    params = {**params, "control_edges": control_params, "control_lines": control_params}

    def compiled(*controls: dict[str, Any]) -> Any:
        values = tuple(Control(network=control, **fields) for fields in controls)
        apply = jax.jit(network.clone(controls=values).apply)
        return lambda **further: apply({"params": params}, z, logsnr, {**cond, **further})

    return compiled


def test_controlnets_are_summed_as_in_diffusers_and_each_may_be_left_out(golden, controlled):
    expected = to_ours(golden("controlnet").arrays["output_guess_False"], 2)
    both = controlled({"hint": "edges", "scale": 0.3}, {"hint": "lines", "scale": 0.4})
    assert_close(both(), expected)
    without = dict.fromkeys(("keep_edges", "keep_lines"), np.array([True, False]))
    kept = both(**without)
    assert_close(kept[:1], expected[:1])
    assert_close(kept[1:], controlled()()[1:])
    assert np.abs(kept - expected)[1:].max() > 0.1 * np.abs(expected).max()


def test_guess_mode_scales_as_diffusers_does(golden, controlled):
    guess = controlled({"hint": "edges", "scale": 0.7, "guess": True})
    assert_close(guess(), to_ours(golden("controlnet").arrays["output_guess_True"], 2))


def test_a_controlnet_is_read_and_written(golden, tmp_path):
    recorded = golden("controlnet")
    network, params = controlnet.read_folder(recorded.folder)
    controlnet.write_folder(tmp_path / "written", network, params)
    assert_same_files(tmp_path / "written", recorded)
    assert controlnet.read_config(tmp_path / "written") == network
    z, logsnr, cond = inputs(recorded.arrays, network)
    hint = to_ours(recorded.arrays["hint"], len(z))
    with pytest.raises(ValueError, match=r"hint \(2, 1, 8, 16, 3\): must have the shape"):
        jax.eval_shape(network.apply, {"params": params}, z, logsnr, cond, hint[:, :, :8])
    bgr = {**recorded.config, "controlnet_conditioning_channel_order": "bgr"}
    with pytest.raises(ValueError, match="channel_order = 'bgr': allowed is 'rgb'"):
        controlnet.read_folder(write(tmp_path / "bgr", bgr, recorded.weights))


def test_motion_modules_are_those_of_diffusers(golden, tmp_path):
    recorded = golden("motion")
    network, params = latent_unet.read_folder(golden("unet_1").folder)
    motion = motion_adapter.read_folder(recorded.folder)
    network, params = motion_adapter.add_motion(network, params, motion)
    arrays = recorded.arrays
    z = to_ours(arrays["z"], 2)
    logsnr = network.time.schedule.logsnrs[arrays["timestep"]]
    apply = jax.jit(network.apply)
    output = apply({"params": params}, z, logsnr, {network.text: arrays["text"]})
    assert_close(output, rearrange(arrays["output"], "b c f h w -> b f h w c"))

    motion_adapter.write_folder(tmp_path / "motion", network, params)
    # Positions are computed, with another rounding of sines.
    assert_same_files(tmp_path / "motion", recorded, but=("pos_embed.pe",))
    again = motion_adapter.read_folder(tmp_path / "motion")
    assert again.motion == motion.motion
    latent_unet.write_folder(tmp_path / "image", network, params)
    assert_same_files(tmp_path / "image", golden("unet_1"))


def test_positions_in_a_file_must_be_those_that_are_computed(golden, tmp_path):
    recorded = golden("motion")
    written = safetensors.numpy.load_file(recorded.folder / "diffusion_pytorch_model.safetensors")
    name = "mid_block.motion_modules.0.transformer_blocks.0.pos_embed.pe"
    computed = motion_adapter._positions(written[name].shape)
    np.testing.assert_allclose(computed, written[name], atol=1e-6)
    wrong = {**recorded.weights, name: written[name][:, ::-1].copy()}
    folder = write(tmp_path / "wrong", recorded.config, wrong)
    with pytest.raises(ValueError, match=f"{name} holds other numbers"):
        motion_adapter.read_folder(folder)


def test_motion_modules_of_another_size_are_refused(golden):
    network, params = latent_unet.read_folder(golden("unet_1").folder)
    motion = motion_adapter.read_folder(golden("motion").folder)
    with_motion, _ = motion_adapter.add_motion(network, params, motion)
    with pytest.raises(ValueError, match=r"slots\.after_attention = .*: is in use"):
        motion_adapter.add_motion(with_motion, params, motion)
    wider = network.clone(unet=dataclasses.replace(network.unet, channel_mult=(1, 4)))
    with pytest.raises(ValueError, match=r"down_1_.* has shape .*16.*asks for .*32"):
        motion_adapter.add_motion(wider, params, motion)
    with pytest.raises(ValueError, match=r"slots\.after_attention = None: must be MotionModules"):
        motion_adapter.write_folder("nowhere", network, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet2DModel"}, "_class_name = 'UNet2DModel': allowed are"),
        ({"time_cond_proj_dim": 256}, "time_cond_proj_dim = 256: allowed is None"),
        ({"act_fn": "gelu"}, "act_fn = 'gelu': allowed is 'silu'"),
        ({"only_cross_attention": [False, True]}, "only_cross_attention = "),
        ({"num_attention_heads": 8}, "num_attention_heads = 8: allowed is None"),
        ({"new_value": 3}, "new_value = 3 is not understood"),
        ({"attention_head_dim": 3}, "attention_head_dim = 3: 3 heads do not divide 8"),
        ({"attention_head_dim": [2]}, "must be a number, or one for each of 2 levels"),
        ({"norm_num_groups": 3}, "norm_num_groups = 3: must divide"),
        ({"norm_num_groups": None}, "norm_num_groups = None: must divide"),
        ({"cross_attention_dim": [6, 8]}, "cross_attention_dim = .6, 8.: must be one number"),
        ({"down_block_types": ["AttnDownBlock2D"] * 2}, "down_block_types = "),
        ({"up_block_types": ["UpBlock2D"] * 2}, "up_block_types = .*: must mirror"),
        ({"layers_per_block": 2}, "lacks .*down_blocks.0"),
        ({"use_linear_projection": True}, r"proj_in\.weight has shape .8, 8, 1, 1."),
        ({"cross_attention_dim": 7}, r"attn2.to_[kv].weight has shape .*, config.json asks for"),
    ],
)
def test_a_config_that_is_not_understood_is_refused_by_name(golden, tmp_path, change, message):
    recorded = golden("unet_1")
    folder = write(tmp_path / "changed", {**recorded.config, **change}, recorded.weights)
    with pytest.raises(ValueError, match=message):
        latent_unet.read_folder(folder)


def test_values_that_change_nothing_are_ignored_and_missing_ones_have_defaults(golden, tmp_path):
    recorded = golden("unet_1")
    lean = {"_class_name", *latent_unet._VALUES}
    config = {key: value for key, value in recorded.config.items() if key in lean}
    config = {**config, "sample_size": 96, "upcast_attention": True, "_diffusers_version": "0.6.0"}
    folder = write(tmp_path / "lean", config, recorded.weights)
    network, params = latent_unet.read_folder(folder, np.float16)
    expected = latent_unet.read_config(recorded.folder)
    assert network == expected.clone(dtype=np.dtype("float16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype("float16")}
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/config.json").write_text(json.dumps({"_class_name": latent_unet.CLASS}))
    # The class's default, not that of Stable Diffusion 1.
    text_width = dataclasses.replace(LatentSettings(), text_width=1280)
    assert latent_unet.read_config(tmp_path / "empty") == LatentUNet(settings=text_width)


def test_a_network_that_diffusers_cannot_compute_is_not_written(golden, tmp_path):
    network, params = latent_unet.read_folder(golden("unet_1").folder)
    over_frames = dataclasses.replace(network.settings, norm_over_frames=True)
    with pytest.raises(ValueError, match="norm_over_frames: diffusers' class has no such value"):
        latent_unet.write_folder(tmp_path, network.clone(settings=over_frames), params)


SD_2 = LatentSettings(heads=(5, 10, 20, 20), text_width=1024, linear_projections=True)


@pytest.mark.parametrize(
    ("shapes", "parameters", "tensors"),
    [
        (lambda: latent_unet.shapes(LatentUNet()), 859_520_964, 686),
        (lambda: latent_unet.shapes(LatentUNet(settings=SD_2)), 865_910_724, 686),
        (lambda: controlnet.shapes(ControlNet()), 361_279_120, 340),
        # The published files also hold positions, a tensor for each of 21 or 20 modules.
        (lambda: motion_shapes(middle=True), 453_209_280, 567 - 21),
        (lambda: motion_shapes(middle=False), 417_137_600, 540 - 20),
    ],
)
def test_real_sizes(shapes, parameters, tensors):
    """Stable Diffusion 1.5 and 2.1, ControlNet, motion modules of version 2 and of 1 and 3."""
    leaves = jax.tree.leaves(shapes())
    assert sum(math.prod(leaf.shape) for leaf in leaves) == parameters
    assert len(leaves) == tensors


def motion_shapes(middle: bool):
    motion = MotionModules(middle=middle)
    return motion_adapter.shapes(LatentUNet(slots=Slots(after_attention=motion)))
