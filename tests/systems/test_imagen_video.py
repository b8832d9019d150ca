"""Imagen Video: the seven stages are what the paper says, at both scales."""

import math
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest

from tests.cascades import CASCADES
from vdm_jax import config as config_lib
from vdm_jax import systems
from vdm_jax.models import layers
from vdm_jax.models.blocks.settings import BlockSettings
from vdm_jax.models.blocks.temporal import TemporalAttention, TemporalConvolution
from vdm_jax.models.condition import TextStates
from vdm_jax.models.condition.channels import LOW_RES
from vdm_jax.models.condition.vector import LOW_RES_NOISE
from vdm_jax.models.unet import UNet
from vdm_jax.models.video_unet import VideoUNet
from vdm_jax.stage.conditions.scalar import FrameRate
from vdm_jax.stage.conditions.video import LowResVideo
from vdm_jax.systems import imagen_video

CONFIGS = Path(__file__).parents[2] / "configs" / "imagen_video"
STAGES = [(cascade, spec) for cascade, specs in CASCADES.items() for spec in specs]


@pytest.mark.parametrize("cascade,spec", STAGES, ids=lambda value: getattr(value, "name", value))
def test_the_stages_are_the_paper_s(cascade, spec):
    config = config_lib.load_config(CONFIGS / cascade / f"{spec.name}.py")
    stage = systems.build(config)
    specs = CASCADES[cascade]
    number = specs.index(spec)
    assert stage.video_shape == (*spec.shape, 3) and stage.find(FrameRate).fps == spec.fps
    network = stage.network
    assert network.temporal is (TemporalAttention if not number else TemporalConvolution)
    # A frozen text encoder, in every stage.
    assert any(isinstance(condition, TextStates) for condition in network.conditions)
    assert {"text_embeddings", "fps"} <= network.reads and "tokens" not in network.reads
    assert network.temporal_levels == tuple(range(len(network.unet.channel_mult)))
    assert (network.reach is None) == (number < 6)
    assert stage.process.prediction == "v"
    if not number:
        assert stage.find(LowResVideo) is None
        return
    before = specs[number - 1]
    assert stage.find(LowResVideo).low_res_shape == (*before.shape, 3)
    grown = tuple(b // a for a, b in zip(before.shape, spec.shape, strict=True))
    assert grown in {"tsr": [(2, 1, 1)], "ssr": [(1, 2, 2), (1, 4, 4)]}[spec.kind]


def test_the_order_is_the_paper_s():
    kinds = ["base", "tsr", "ssr", "ssr", "tsr", "tsr", "ssr"]
    for cascade, specs in CASCADES.items():
        assert [spec.kind for spec in specs] == kinds
        names = config_lib.load_config(CONFIGS / cascade / "cascade.py").stages
        assert names == tuple(spec.name for spec in specs)
    assert math.isclose(sum(spec.parameters for spec in imagen_video.PAPER), 11.65e9)  # "11.6B"


@pytest.mark.parametrize("spec", imagen_video.PAPER, ids=lambda spec: spec.name)
def test_parameters_agree_within_three_per_cent(spec):
    """docs/imagen_video.md has the numbers."""
    stage = systems.build(config_lib.load_config(CONFIGS / "paper" / f"{spec.name}.py"))
    side = stage.network.multiple
    z = jax.ShapeDtypeStruct((1, 2, side, side, 3), jnp.float32)
    logsnr = jax.ShapeDtypeStruct((1,), jnp.float32)
    cond = {**stage.cond_shapes(1, 0), "low_res": z}
    with layers.shapes_only():  # no random numbers are traced
        shapes = jax.eval_shape(stage.network.init, jax.random.key(0), z, logsnr, cond)
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(nn.meta.unbox(shapes)))
    assert abs(count / spec.parameters - 1) < 0.03


def test_images_pass_by_all_that_mixes_frames():
    network = VideoUNet(
        unet=UNet(channels=8, channel_mult=(1,), num_res_blocks=(1,)),
        settings=BlockSettings(head_dim=4, norm_groups=2),
        conditions=(LOW_RES_NOISE,),
        videos=(LOW_RES,),
        attention_levels=(0,),
        temporal=TemporalConvolution,
    )
    z = jax.random.normal(jax.random.key(0), (1, 5, 4, 4, 3))
    logsnr = jnp.zeros(1)
    cond = {"low_res": z[..., ::-1], "low_res_logsnr": jnp.ones(1)}
    shapes = jax.eval_shape(network.init, jax.random.key(0), z, logsnr, cond)
    keys = iter(jax.random.split(jax.random.key(1), len(jax.tree.leaves(shapes))))
    params = jax.tree.map(
        lambda leaf: 0.3 * jax.random.normal(next(keys), leaf.shape), nn.meta.unbox(shapes)
    )

    @jax.jit
    def images_only(z, low_res):
        told = {**cond, "low_res": low_res}
        return network.apply(params, z, logsnr, told, num_images=z.shape[1])

    together = jax.jit(lambda z: network.apply(params, z, logsnr, cond, num_images=2))(z)
    alone = images_only(z[:, 3:], cond["low_res"][:, 3:])
    chex.assert_trees_all_close(together[:, 3:], alone, atol=1e-5)
    swapped = images_only(z[:, :2:-1], cond["low_res"][:, :2:-1])
    chex.assert_trees_all_close(swapped, alone[:, ::-1], atol=1e-5)
    # Without images the same frames do mix.
    mixed = jax.jit(lambda z: network.apply(params, z, logsnr, cond))(z)
    assert jnp.abs(mixed[:, 3:] - together[:, 3:]).max() > 1e-2
