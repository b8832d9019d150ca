"""Tune-A-Video's U-Net against NumPy, by the names of its published tensors, and its folders."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.weights.tune_a_video_reference import UNet
from vdm_jax.models.latent_unet import LatentUNet
from vdm_jax.weights import fetch, latent_unet, published
from vdm_jax.weights import tune_a_video as weights

BATCH, FRAMES, SIZE, TEXT = 2, 3, 4, 5
CONFIG = {
    "_class_name": "UNet3DConditionModel",
    "_diffusers_version": "0.11.1",
    "act_fn": "silu",
    "attention_head_dim": 2,
    "block_out_channels": [8, 16],
    "center_input_sample": False,
    "class_embed_type": None,
    "cross_attention_dim": 6,
    "down_block_types": ["CrossAttnDownBlock3D", "DownBlock3D"],
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 1,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock3DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 4,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "resnet_time_scale_shift": "default",
    "sample_size": 4,
    "up_block_types": ["UpBlock3D", "CrossAttnUpBlock3D"],
    "upcast_attention": False,
    "use_linear_projection": False,
}


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(fetch, "CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The network, its parameters, all drawn, and the tensors of its folder."""
    network = weights.from_config(CONFIG, published.Path("config.json"))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: np.asarray(0.3 * rng.normal(size=leaf.shape), np.float32),
        latent_unet.shapes(network),
    )
    folder = tmp_path_factory.mktemp("unet")
    weights.write_folder(folder, network, params)
    tensors = safetensors.numpy.load_file(folder / f"{published.DIFFUSERS}.safetensors")
    return network, params, folder, tensors


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(1)
    z = rng.normal(size=(BATCH, FRAMES, SIZE, SIZE, 4)) * np.array([0.5, 1, 2])[:, None, None, None]
    return z, np.array([3.0, 700.0]), rng.normal(size=(BATCH, TEXT, 6))


def apply(network: LatentUNet, params, inputs):
    z, timesteps, text = inputs
    logsnr = jnp.interp(
        jnp.asarray(timesteps, jnp.float32), jnp.arange(1000.0), network.time.schedule.grid()
    )
    cond = {network.text: jnp.asarray(text, jnp.float32)}
    run = jax.jit(lambda p: network.apply({"params": p}, jnp.asarray(z, jnp.float32), logsnr, cond))
    return np.asarray(run(params))


def test_the_whole_network_is_that_of_the_equations(drawn, inputs):
    network, params, _, tensors = drawn
    wanted = UNet(CONFIG, tensors)(*inputs)
    found = apply(network, params, inputs)
    scale = np.abs(wanted).max()
    assert np.abs(found - wanted).max() < 1e-4 * scale
    # Normalisation over each frame is another function.
    by_frame = UNet(CONFIG, tensors, over_frames=False)(*inputs)
    assert np.abs(by_frame - wanted).max() > 0.01 * scale


def test_what_self_attention_attends_to_and_the_frames_matter(drawn, inputs):
    """The comparison above would not pass with another attention."""
    _, _, _, tensors = drawn
    wanted = UNet(CONFIG, tensors)(*inputs)
    without = {
        name: np.zeros_like(leaf) if "attn_temp.to_out" in name else leaf
        for name, leaf in tensors.items()
    }

    class Own(UNet):
        def attention(self, name, queries, context):
            return super().attention(name, queries, queries if name.endswith("attn1") else context)

    for other in (UNet(CONFIG, without), Own(CONFIG, tensors)):
        assert np.abs(other(*inputs) - wanted).max() > 0.01 * np.abs(wanted).max()


def test_a_folder_has_the_published_names_and_comes_back(drawn):
    network, params, folder, tensors = drawn
    block = "down_blocks.0.attentions.0.transformer_blocks.0"
    for name, shape in (
        (f"{block}.attn_temp.to_q.weight", (8, 8)),
        (f"{block}.attn_temp.to_out.0.bias", (8,)),
        (f"{block}.norm_temp.weight", (8,)),
        (f"{block}.attn1.to_k.weight", (8, 8)),
        ("mid_block.attentions.0.transformer_blocks.0.attn_temp.to_v.weight", (16, 16)),
        ("up_blocks.1.attentions.1.proj_in.weight", (8, 8, 1, 1)),
    ):
        assert tensors[name].shape == shape
    values = json.loads((folder / "config.json").read_text())
    assert {key: values[key] for key in values} == {key: CONFIG[key] for key in values}
    read = weights.read_folder(folder)
    assert read.network == network
    jax.tree.map(np.testing.assert_array_equal, read.params, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel.*allowed.*UNet3DCond"),
        ({"down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"]}, "is no block of UNet3D"),
        ({"up_block_types": ["CrossAttnUpBlock3D", "UpBlock3D"]}, "must mirror down_block_types"),
        ({"dual_cross_attention": True}, "dual_cross_attention = True"),
        ({"motion": 1}, "motion = 1 is not understood"),
    ],
)
def test_a_config_that_is_not_understood_is_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        weights.from_config({**CONFIG, **change}, published.Path("config.json"))


def test_a_folder_with_other_tensors_is_refused(drawn, tmp_path):
    """Another class of diffusers has the same name and blocks."""
    _, _, folder, tensors = drawn
    path = tmp_path / f"{published.DIFFUSERS}.safetensors"
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    name = "up_blocks.1.attentions.0.transformer_blocks.0.norm_temp.bias"
    lacking = {key: leaf for key, leaf in tensors.items() if key != name}
    safetensors.numpy.save_file(lacking, path)
    with pytest.raises(ValueError, match=f"lacks the tensor {name}"):
        weights.read_folder(tmp_path)
    safetensors.numpy.save_file({**tensors, "transformer_in.norm.bias": tensors[name]}, path)
    with pytest.raises(ValueError, match="has no transformer_in.norm.bias"):
        weights.read_folder(tmp_path)


def test_a_network_that_the_class_cannot_compute_is_refused(drawn):
    network, _, _, _ = drawn
    image = latent_unet.image_network(network)
    with pytest.raises(ValueError, match="slots: Tune-A-Video's class"):
        weights.config(image)
    by_frame = network.clone(
        settings=type(network.settings)(**{**vars(network.settings), "norm_over_frames": False})
    )
    with pytest.raises(ValueError, match="norm_over_frames = False: Tune-A-Video's class"):
        weights.config(by_frame)
