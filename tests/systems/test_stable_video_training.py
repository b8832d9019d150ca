"""Stable Video Diffusion's stages of training: each starts as the model before it, and only what is
trained changes."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from tests.systems import test_latent_image
from vdm_jax import systems
from vdm_jax.parallel import sharding
from vdm_jax.pipelines import initial as initial_lib
from vdm_jax.pipelines import model as pretrained
from vdm_jax.systems import stable_video
from vdm_jax.training import optimizer, state, step
from vdm_jax.weights import fetch, latent_unet
from vdm_jax.weights import stable_video as weights

FRAMES, SIDE = 3, 16  # of clips in pixels


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory):
    """A published text-to-image pipeline: what the first stage starts from."""
    folder = tmp_path_factory.mktemp("image")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        yield test_latent_image.write_folder(folder / "model")


@pytest.fixture(scope="module")
def make_config(image_folder):
    """A function from the fields of `model` to the configuration of a stage."""
    return functools.partial(config_of, image_folder)


def config_of(image_folder, frames=FRAMES, side=SIDE, **model):
    """The configuration of a stage that begins with a published text-to-image pipeline."""
    image = latent_unet.read_config(image_folder / "unet")
    config = stable_video.default_config().unlock()
    config.model.unet = ConfigDict(weights.inflated_config(image))
    config.model.unet.in_channels = 8 if model.get("still") else 4
    config.model.update({"context": "text", "still": False, "dtype": "float32", **model})
    config.model.autoencoder = str(image_folder / "vae")
    config.text.update({"encoder": "clip", "weights": str(image_folder), "max_length": 77})
    config.data.update({"num_frames": frames, "image_size": side, "image_width": side})
    config.train.update({"batch_size": 2, "warmup_steps": 0, "learning_rate": 1e-3})
    return config


@pytest.fixture(scope="module")
def stages(make_config, image_folder, tmp_path_factory):
    """By name, the configuration, the stage, and the parameters that training starts from, each
    stage from the file of the one before."""
    found, source = {}, image_folder
    for name, config in {
        "image": make_config(frames=1, temporal=False),
        "video": make_config(),
        "image_to_video": make_config(still=True),
    }.items():
        stage = systems.build(config)
        plan = sharding.make_plan(stage, {"data": 1}, jax.devices()[:1])
        params = initial_lib.params(source, stage, plan)
        source = tmp_path_factory.mktemp("stages") / f"{name}.safetensors"
        pretrained.save_model(source, params, config)
        found[name] = (config, stage, params)
    return found


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


def test_the_image_stage_has_the_parameters_of_the_image_model(stages, image_folder):
    _, stage, params = stages["image"]
    held = flat(pretrained.load(image_folder).params)
    assert flat(params).keys() == held.keys()
    for path, leaf in flat(params).items():
        np.testing.assert_array_equal(leaf, held[path], err_msg=path)
    # log σ ~ N(1, 1.6²), and velocity with weight 1 is EDM's preconditioning and weight.
    levels = -0.5 * stage.process.sample_logsnr(jax.random.key(0), 4096)
    assert abs(levels.mean() - 1.0) < 0.01 and abs(levels.std() - 1.6) < 0.02
    assert (stage.process.prediction, stage.process.loss_name) == ("v", "v_mse")


def test_a_clip_of_the_last_stage_starts_as_the_first_stages_images(stages):
    (_, image, image_params), (_, stage, params) = stages["image"], stages["image_to_video"]
    rng = np.random.default_rng(0)

    def draw(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    z, logsnr = draw(2, *stage.z_shape), jnp.array([2.0, -9.0])
    text = {"text_embeddings": draw(2, 77, 16), "token_mask": jnp.ones((2, 77), bool)}
    cond = {
        **text,
        "still_latents": draw(2, 1, *stage.z_shape[1:]),
        **{name: jnp.array([3.0, 200.0]) for name in ("fps_id", "motion_bucket", "augmentation")},
    }
    found = jax.jit(stage.raw_output)(params, z, logsnr, cond)
    one = jax.jit(image.raw_output)
    frames = [one(image_params, z[:, i : i + 1], logsnr, text) for i in range(FRAMES)]
    wanted = np.concatenate(frames, axis=1)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    new = [path for path in flat(params) if "temporal" in path or "numbers" in path]
    assert len(new) == len(flat(params)) - len(flat(image_params)) > 50


def make_batch(stage, size):
    rng = np.random.default_rng(0)

    def draw(leaf):
        if leaf.dtype == np.uint8:
            return rng.integers(0, 256, size=leaf.shape, dtype=np.uint8)
        return np.asarray(rng.normal(size=leaf.shape)).astype(leaf.dtype)

    return jax.tree.map(draw, stage.abstract_batch(size))


def test_an_update_changes_what_is_trained_and_nothing_else(stages):
    config, stage, params = stages["image_to_video"]
    plan = sharding.make_plan(stage, {"data": 1}, jax.devices()[:1])
    frozen, tx = systems.read_frozen(config), optimizer.make_optimizer(config.train)
    kept = jax.tree.map(np.array, {name: part.params for name, part in frozen.items()})
    before = state.from_params(stage, params, tx, plan)
    held = jax.tree.map(np.array, before.params)
    update = step.make_train_step(stage, tx, config, plan, frozen)
    after, metrics = update(before, make_batch(stage, 2))
    assert np.isfinite(metrics["loss"])
    changed = {
        path
        for path, leaf in flat(jax.tree.map(np.array, after.params)).items()
        if np.abs(leaf - flat(held)[path]).max() > 0
    }
    # All but what lies before a map that is zero still: the second maps come first.
    expected = {
        "input_conv/kernel",
        "condition/numbers_out/kernel",
        "down_0_block_0/conv_in/kernel",
        "down_0_block_0_temporal/conv_out/kernel",
        "down_0_attention_0/temporal_0/number_out/kernel",
        "down_0_attention_0/temporal_0/block/attention_self/out/kernel",
        "up_0_attention_1/temporal_0/block/mlp/linear_out/kernel",
    }
    assert expected <= changed
    conv = np.abs(after.params["input_conv"]["kernel"]).max(axis=(0, 1, 3))
    assert conv.shape == (8,) and conv.min() > 0  # the image's latents are learned from
    jax.tree.map(np.testing.assert_array_equal, kept, {n: p.params for n, p in frozen.items()})
    moments = [leaf.shape for leaf in jax.tree.leaves(after.opt_state) if leaf.ndim]
    assert sorted(moments) == sorted(2 * [leaf.shape for leaf in jax.tree.leaves(after.params)])


def test_low_rank_changes_of_it_are_trained_and_written(stages, tmp_path):
    config = stages["image_to_video"][0].copy_and_resolve_references()
    config.train.lora.update({"rank": 2, "targets": "temporal_0/block/attention_self/(query|out)"})
    stage = systems.build(config)
    params = stage.init(jax.random.key(0))
    assert {path.split("/")[1] for path in flat(params)} == {"temporal_0"}
    base = {"base": stages["image_to_video"][2]}
    frozen = jax.eval_shape(lambda: {**base, **stages_frozen(config)})
    batch = stage.abstract_batch(2)
    loss, _ = jax.eval_shape(stage.loss, params, batch, jax.random.key(0), frozen)
    assert loss.shape == ()
    file, pairs = tmp_path / "lora.safetensors", stage.pairs(params)
    rng = np.random.default_rng(0)
    pairs = {
        path: tuple(np.asarray(rng.normal(size=part.shape), np.float32) for part in pair)
        for path, pair in pairs.items()
    }
    systems.write_lora(file, config, pairs, 0.5, "float32")
    _, changes = systems.read_loras(config, {str(file): 2.0})
    assert changes.keys() == pairs.keys()
    for path, (down, up) in pairs.items():
        wanted = np.tensordot(down, up, axes=1)  # 0.5 x 2
        np.testing.assert_allclose(changes[path], wanted, atol=1e-4 * np.abs(wanted).max())


def stages_frozen(config):
    return {name: part.params for name, part in systems.read_frozen(config).items()}


def test_clips_of_several_frame_rates(make_config):
    config = make_config(frames=8)
    config.model.update({"frames": 3, "frame_strides": (1, 2)})
    stage = systems.build(config)
    assert stage.video_shape[0] == stage.z_shape[0] == 3 and stage.clip_shape[0] == 3
    assert stage.view.rates == (8.0, 4.0) and stage.view.fps == 8.0
    batch = make_batch(stage, 2) | {"fps": np.array([8.0, 4.0], np.float32)}
    example = jax.jit(lambda batch: stage.example(batch, jax.random.key(0), stages_frozen(config)))
    cond = example(batch)[1]
    np.testing.assert_array_equal(cond["fps_id"], [7, 3])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"context": "image"}, "model.context = 'image': allowed are"),
        ({"context": "still"}, "model.context = 'still': allowed are text, without model.still"),
        ({"still": True, "temporal": False}, "model.still = True: needs model.temporal"),
        ({"frames": 2}, "model.frames = 2, model.frame_strides = (): set both"),
        ({"frames": 2, "frame_strides": (2,)}, "the first stride must be 1"),
        ({"dtype": "float64"}, "model.dtype = 'float64'"),
        ({"autoencoder": "nowhere"}, "nowhere"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(make_config, fields, message):
    config = make_config(**{key: fields[key] for key in fields if key != "autoencoder"})
    config.model.update(fields)
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        systems.build(config)


def test_images_beside_clips_are_for_stages_without_a_still(stages):
    with pytest.raises(ValueError, match="data.image_frames = 1: a model that takes an image"):
        stages["image_to_video"][1].cond_shapes(2, 1)
    assert stages["video"][1].cond_shapes(2, 1)
