"""Strings of a configuration become the parts of a network."""

import pytest
from ml_collections import ConfigDict

from vdm_jax.models.blocks.spatial import SpatialAttention
from vdm_jax.models.blocks.temporal import TemporalAttention, TemporalConvolution
from vdm_jax.models.condition import FramePositions, Label, Words
from vdm_jax.models.space_time_unet import SpaceTimeUNet
from vdm_jax.models.video_unet import VideoUNet
from vdm_jax.systems import vdm
from vdm_jax.systems.network import make_network


def config(**model):
    config = vdm.default_config()
    config.model = ConfigDict(config.model.to_dict() | model)
    return config


@pytest.mark.parametrize(
    ("temporal", "block"),
    [("attention", TemporalAttention), ("convolution", TemporalConvolution), ("none", None)],
)
def test_what_mixes_frames_is_a_class_of_blocks(temporal, block):
    network, _ = make_network(config(temporal=temporal, temporal_levels=(2,)))
    assert type(network) is VideoUNet and network.temporal is block
    assert network.temporal_levels == (2,) and network.spatial is SpatialAttention
    assert make_network(config(spatial_attention="none"))[0].spatial is None


def test_every_field_reaches_its_part():
    changes = {
        "channels": 24,
        "channel_mult": (1, 3),
        "num_res_blocks": (1, 2),
        "attention_levels": (0,),
        "head_dim": 8,
        "patch_size": 2,
        "out_channels": 4,
        "norm_groups": 6,
        "dropout": 0.25,
        "skips": "level",
        "coordinates": True,
        "output_skip": True,
        "output_gate": True,
        "embedding_dim": 40,
        "text_kernel": 5,
        "num_labels": 9,
        "frame_positions": True,
        "remat": "dots",
        "temporal": "space_time",
        "temporal_levels": (0, 1),
        "temporal_resize": (0,),
        "temporal_depth": 3,
    }
    changed = config(**changes)
    changed.text.encoder = "words"
    network, encoder = make_network(changed)
    assert type(network) is SpaceTimeUNet
    words = Words(vocab_size=encoder.vocab_size, max_length=encoder.max_length, kernel=5)
    assert network.conditions == (words, Label(num_labels=9), FramePositions())
    parts = (network, network.unet, network.settings, network.input, network.output)
    renamed = {"out_channels": "channels", "output_skip": "skip", "output_gate": "gate"}
    for field in changes.keys() - {"temporal", "text_kernel", "num_labels", "frame_positions"}:
        owners = (network.output,) if field in renamed else parts
        name = renamed.get(field, field)
        assert changes[field] in [getattr(part, name, None) for part in owners], field


def test_conditions_of_a_stage_are_read():
    plain, _ = make_network(config())
    assert plain.reads == frozenset()
    network, _ = make_network(
        config(guidance_embedding=True), low_res=True, masked_video=True, fps=True
    )
    assert network.reads == {
        "guidance", "low_res", "low_res_logsnr", "fps", "masked_video", "mask",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"temporal": "time"}, "model.temporal = 'time': allowed are attention, .*, space_time"),
        ({"spatial_attention": "sparse"}, "model.spatial_attention = 'sparse': allowed are soft"),
        ({"null_condition": "zero"}, "model.null_condition: unknown; allowed are channels, "),
        ({"skips": "some"}, "skips = 'some'"),
    ],
)
def test_values_that_are_not_allowed(model, message):
    with pytest.raises(ValueError, match=message):
        make_network(config(**model))
