"""Lumiere: what is trained, what is known, and what its configurations say."""

import dataclasses
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax import config as config_lib
from vdm_jax import systems
from vdm_jax.diffusion.measurements import Mask
from vdm_jax.parallel import sharding
from vdm_jax.pipelines import initial as initial_lib
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage import sampler as sampling
from vdm_jax.stage.conditions.video import MaskedVideo
from vdm_jax.systems import lumiere
from vdm_jax.training import optimizer, state, step

CONFIGS = Path(__file__).parents[2] / "configs" / "lumiere" / "tiny"
SMALL = {
    "model.channels": "8",
    "model.head_dim": "4",
    "model.norm_groups": "2",
    "model.embedding_dim": "16",
    "text.vocabulary": "red,circle",
    "text.max_length": "2",
    "train.batch_size": "2",
    "train.warmup_steps": "0",
}
KEY = jax.random.key(0)


def load(name, **changes):
    return config_lib.load_config(CONFIGS / f"{name}.py", {**SMALL, **changes})


def short(name, **changes):
    """Of clips of four frames."""
    clip = {"data.num_frames": "4"}
    sides = {"stage.shape": "(4,16,16)"}
    return load(name, **clip, **sides, **changes)


@pytest.fixture(scope="module")
def image():
    """An image stage, its configuration and parameters without zeros."""
    config = short("t2i_base", **{"stage.frame_strides": "(1,)"})
    stage = systems.build(config)
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(stage.abstract_params())
    params = jax.tree.map(lambda a: jnp.float32(0.2 * rng.normal(size=a.shape)), shapes)
    return stage, config, params


@pytest.fixture(scope="module")
def clip_stage(image, tmp_path_factory):
    """The stage inflated from it, its configuration, plan, and what its training starts from."""
    _, config, params = image
    path = pretrained.save_model(tmp_path_factory.mktemp("image") / "m.safetensors", params, config)
    config = short("base_32f_16", **{"train.accumulate": "2"})
    stage = systems.build(config)
    plan = sharding.make_plan(stage, config.mesh)
    return stage, config, plan, initial_lib.params(path, stage, plan)


def batch(stage):
    rng = np.random.default_rng(1)
    video = rng.integers(256, size=(2, *stage.clip_shape), dtype=np.uint8)
    text = stage.text_encoder.encode(["red circle", "circle"])
    return {"video": jnp.asarray(video), **jax.tree.map(jnp.asarray, text)}


def test_only_what_is_new_is_trained(image, clip_stage):
    _, _, image_params = image
    stage, config, plan, params = clip_stage
    tx = optimizer.make_optimizer(config.train)
    update = step.make_train_step(stage, tx, config, plan)
    before = jax.device_get(params)
    held = state.from_params(stage, params, tx, plan)
    assert state.count_parameters(stage.trained(before)) < state.count_parameters(before)
    moments = state.count_parameters(held.opt_state)
    counts = [leaf for leaf in jax.tree.leaves(held.opt_state) if leaf.ndim == 0]
    assert moments - len(counts) == 2 * state.count_parameters(stage.trained(before))
    for _ in range(3):
        held, metrics = update(held, batch(stage))
    assert metrics["finite"] == 1
    of_image = dict(jax.tree_util.tree_leaves_with_path(image_params))
    new = 0
    for tree in (held.params, held.ema):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            if path in of_image:
                np.testing.assert_array_equal(leaf, of_image[path])
            else:
                new += 1
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), held.params, before)
    # All that is new is reached, but what lies behind a projection that is still zero at first.
    assert sum(jax.tree.leaves(stage.trained(changed))) > 0.8 * new / 2


def test_a_model_that_lacks_image_layers_is_refused(image, clip_stage, tmp_path):
    image_stage, config, params = image
    stage, _, plan, _ = clip_stage
    other = config.copy_and_resolve_references()
    with other.unlocked():
        other.model.attention_levels = (1,)
    fewer = systems.build(other)
    kept = jax.tree.map(
        lambda a: np.zeros(a.shape, a.dtype), nn.meta.unbox(fewer.abstract_params())
    )
    path = pretrained.save_model(tmp_path / "other.safetensors", kept, other)
    with pytest.raises(ValueError, match="lacks down_0_attention_0_"):
        initial_lib.params(path, stage, plan)


def test_a_stage_is_shown_clips_of_which_a_part_is_known(clip_stage):
    conditions = [
        dataclasses.replace(c, kinds=("first_frame",)) if isinstance(c, MaskedVideo) else c
        for c in clip_stage[0].conditions
    ]
    stage = dataclasses.replace(clip_stage[0], conditions=tuple(conditions))
    x, cond, _ = stage.example(batch(stage), KEY)
    assert cond["mask"].shape == (2, 4, 16, 16, 1)
    chex.assert_trees_all_equal(cond["masked_video"][:, 0], x[:, 0])
    assert not cond["masked_video"][:, 1:].any() and not cond["mask"][:, 1:].any()


def test_what_is_known_is_told_to_the_network(clip_stage, image):
    stage, _, plan, params = clip_stage
    sampler = sampling.Sampler.from_config(stage, {}, method="trained", threshold="none")
    z = jax.random.normal(KEY, (1, 4, 16, 16, 3))
    mask = Mask(known=jnp.arange(4)[None, :, None, None, None] == 0)
    known = sampling.Known(measurement=mask, y=z[:, ::-1])
    cond = jax.tree.map(jnp.asarray, stage.encode(["circle"]))
    # The convolution that takes it in starts at zero: make it see.
    rng = np.random.default_rng(0)
    kernel = params["masked_video_conv"]["kernel"]
    entry = {**params["masked_video_conv"], "kernel": rng.normal(size=kernel.shape)}
    seeing = {**params, "masked_video_conv": jax.tree.map(jnp.float32, entry)}
    told = {"masked_video": z[:, ::-1], "mask": jnp.zeros((1, 4, 16, 16, 1)).at[:, 0].set(1.0)}

    @jax.jit
    def both(params):
        found, _ = sampler.denoiser_and_rule(params, known)
        plain = stage.denoiser(params)
        direct = plain(z, jnp.zeros(1), {**cond, **told})
        return found(z, jnp.zeros(1), cond).x, direct.x, plain(z, jnp.zeros(1), cond).x

    found, direct, untold = both(seeing)
    chex.assert_trees_all_close(found, direct, atol=1e-5)
    assert jnp.abs(found - untold).max() > 1e-2
    with pytest.raises(ValueError, match="this model was not trained with masked videos"):
        sampling.Sampler.from_config(image[0], {}, method="trained")


def test_style_leans_the_image_layers_to_another_model(image, clip_stage):
    _, _, image_params = image
    params = clip_stage[3]
    style = jax.tree.map(lambda leaf: leaf + 1.0, image_params)
    found = lumiere.stylise(params, style, 0.25)
    of_image = dict(jax.tree_util.tree_leaves_with_path(image_params))
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        mixed = dict(jax.tree_util.tree_leaves_with_path(found))[path]
        chex.assert_trees_all_close(mixed, leaf + 0.25 * (path in of_image), atol=1e-6)
    with pytest.raises(ValueError, match="amount = 2.0"):
        lumiere.stylise(params, style, 2.0)
    with pytest.raises(ValueError, match="the image model has other"):
        lumiere.stylise(params, {"other": 1.0}, 0.5)


@pytest.mark.parametrize(
    "image_name,clip_name", [("t2i_base", "base_32f_16"), ("t2i_ssr", "ssr_32")]
)
def test_an_image_model_is_a_part_of_what_is_inflated_from_it(image_name, clip_name):
    shapes = []
    for name in (image_name, clip_name):
        stage = systems.build(load(name))
        flat = jax.tree_util.tree_leaves_with_path(nn.meta.unbox(stage.abstract_params()))
        shapes.append({path: leaf.shape for path, leaf in flat})
    of_image, of_clip = shapes
    assert of_image.items() <= of_clip.items()
    stage = systems.build(load(clip_name))
    new = stage.trained(nn.meta.unbox(stage.abstract_params()))
    trained = {path for path, _ in jax.tree_util.tree_leaves_with_path(new)}
    assert trained == of_clip.keys() - of_image.keys()
    assert stage.video_shape[0] == 32 and stage.network.temporal_resize == (0,)
