"""Single files in the original layouts."""

import hashlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from tests.weights.golden_unet import Golden, load_golden
from vdm_jax.models.blocks.slots import Slots
from vdm_jax.weights import (
    controlnet,
    fetch,
    latent_unet,
    motion_adapter,
    original_latent,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "CACHE", tmp_path / "cache")


def names(shapes, name, original):
    """Original to diffusers' names of all parameters."""
    found = {}
    for path in traverse_util.flatten_dict(shapes, sep="/"):
        place = name(path)
        diffusers = place if isinstance(place, str) else place.name
        found[original(diffusers)] = diffusers
    return found


def unet_names(network):
    return names(
        latent_unet.shapes(network),
        latent_unet.name_function(network),
        original_latent.unet_name(network),
    )


def controlnet_names(network):
    return names(
        controlnet.shapes(network),
        controlnet.name_function(network),
        original_latent.controlnet_name(network),
    )


def motion_names(motion):
    network = original_latent.STABLE_DIFFUSION_1.clone(slots=Slots(after_attention=motion))
    return names(
        motion_adapter.shapes(network),
        motion_adapter.name_function(network),
        original_latent.motion_name,
    )


@pytest.mark.parametrize(
    ("table", "count", "digest", "sample"),
    [
        (
            lambda: unet_names(original_latent.STABLE_DIFFUSION_1),
            686,
            "3d355a17ce5dcde4",
            {
                "model.diffusion_model.input_blocks.3.0.op.weight": (
                    "down_blocks.0.downsamplers.0.conv.weight"
                ),
                "model.diffusion_model.output_blocks.2.1.conv.bias": (
                    "up_blocks.0.upsamplers.0.conv.bias"
                ),
                "model.diffusion_model.output_blocks.5.2.conv.weight": (
                    "up_blocks.1.upsamplers.0.conv.weight"
                ),
                "model.diffusion_model.middle_block.1.transformer_blocks.0.attn2.to_k.weight": (
                    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
                ),
            },
        ),
        (
            lambda: controlnet_names(original_latent.CONTROLNET_1),
            340,
            "69283afc2d3e4705",
            {
                "control_model.input_hint_block.14.weight": (
                    "controlnet_cond_embedding.conv_out.weight"
                ),
                "control_model.zero_convs.11.0.bias": "controlnet_down_blocks.11.bias",
            },
        ),
        (
            lambda: motion_names(original_latent.ANIMATEDIFF_2),
            546,
            "1c7c267420921126",
            {
                "mid_block.motion_modules.0.temporal_transformer.transformer_blocks.0."
                "attention_blocks.1.to_q.weight": (
                    "mid_block.motion_modules.0.transformer_blocks.0.attn2.to_q.weight"
                ),
            },
        ),
    ],
)
def test_names_are_those_that_diffusers_converts(table, count, digest, sample):
    """The digests are of tables that diffusers 0.42's converters of these files map alike."""
    found = table()
    assert len(found) == count and sample.items() <= found.items()
    lines = "\n".join(f"{ours} {theirs}" for ours, theirs in sorted(found.items()))
    assert hashlib.sha256(lines.encode()).hexdigest()[:16] == digest


def write(path, golden: Golden, name, further=()):
    """The weights of a folder under their original names."""
    positions = ".pos_embed.pe"
    tensors = {
        key.replace(positions, ".attention_blocks.0.pos_encoder.pe")
        if key.endswith(positions)
        else name(key): value
        for key, value in golden.weights.items()
    }
    tensors |= {key: np.ones(3, np.float32) for key in further}
    safetensors.numpy.save_file(tensors, path)
    return path


def same(a, b):
    return jax.tree.all(jax.tree.map(np.array_equal, a, b))


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    return lambda name: load_golden(name, tmp_path_factory.mktemp(name) / "folder")


def test_files_are_read_as_folders_are(golden, tmp_path):
    recorded = golden("unet_1")
    network, params = latent_unet.read_folder(recorded.folder)
    name = original_latent.unet_name(network)
    others = ("first_stage_model.encoder.conv_in.weight", "model_ema.decay")
    file = write(tmp_path / "v1.safetensors", recorded, name, others)
    assert same(original_latent.read_unet(file, network).params, params)
    wrong = write(tmp_path / "w.safetensors", recorded, name, ["model.diffusion_model.label"])
    with pytest.raises(ValueError, match=r"has no model\.diffusion_model\.label"):
        original_latent.read_unet(wrong, network)

    recorded = golden("controlnet")
    control, params = controlnet.read_folder(recorded.folder)
    name = original_latent.controlnet_name(control)
    file = write(tmp_path / "control.safetensors", recorded, name)
    assert same(original_latent.read_controlnet(file, control).params, params)

    recorded = golden("motion")
    motion = motion_adapter.read_folder(recorded.folder)
    file = write(tmp_path / "motion.safetensors", recorded, original_latent.motion_name)
    found = original_latent.read_motion(file, motion.motion, network)
    assert found.motion == motion.motion and same(found.params, motion.params)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        original_latent.read_unet(tmp_path / "none.safetensors")
    (tmp_path / "v1.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"v1.ckpt: allowed are \.safetensors files"):
        original_latent.read_unet(tmp_path / "v1.ckpt")
