"""Video LDM starts as its image model, training changes only the layers over frames and what takes
known frames, and known frames guide samples."""

import argparse
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.systems import test_latent_image
from vdm_jax import systems
from vdm_jax.cli import edit_inputs
from vdm_jax.diffusion.predictions import Prediction
from vdm_jax.parallel import sharding
from vdm_jax.pipelines import editing
from vdm_jax.pipelines import initial as initial_lib
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage.conditions.prompt import NEGATIVE
from vdm_jax.systems import video_ldm
from vdm_jax.training import optimizer, state, step
from vdm_jax.weights import fetch

FRAMES, IMAGES, SIDE = 3, 1, 16
KINDS = ("none", "first_frame", "first_two_frames")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        yield test_latent_image.write_folder(folder / "model")


@pytest.fixture(scope="module")
def started(folder):
    """The configuration, the stage and its plan, and what training starts from."""
    image = pretrained.read_config(folder)
    config = video_ldm.default_config().unlock()
    config.model, config.text = image.model, image.text
    config.data.update({"num_frames": 2 * FRAMES, "image_size": SIDE, "image_frames": IMAGES})
    config.stage.update({"shape": (FRAMES, SIDE, SIDE), "data_fps": 8.0, "masks": KINDS})
    config.stage.frame_strides = (2, 1)
    config.train.update({"batch_size": 2, "warmup_steps": 0, "learning_rate": 1e-3})
    stage = systems.build(config)
    plan = sharding.make_plan(stage, {"data": 1}, jax.devices()[:1])
    return config, stage, plan, initial_lib.params(folder, stage, plan)


def is_new(path):
    return re.search(video_ldm.TEMPORAL, path) is not None


def flat(params):
    return traverse_util.flatten_dict(jax.tree.map(np.array, params), sep="/")


def test_a_clip_starts_as_images_and_layers_over_frames_mix_it(started, folder):
    _, stage, _, params = started
    image = pretrained.load(folder)
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(2, *stage.z_shape)), jnp.float32)
    logsnr = jnp.array([2.0, -3.0])
    text = {"text_embeddings": jnp.asarray(rng.normal(size=(2, 77, 16)), jnp.float32)}
    cond = {
        **text,
        "masked_video": jnp.asarray(rng.normal(size=z.shape), jnp.float32),
        "mask": jnp.zeros((*z.shape[:-1], 1)).at[:, :2].set(1.0),
        "fps": jnp.array([4.0, 8.0]),
    }
    apply = jax.jit(lambda p, z, c=cond: stage.network.apply({"params": p}, z, logsnr, c))
    one = jax.jit(lambda z: image.stage.network.apply({"params": image.params}, z, logsnr, text))
    wanted = np.concatenate([one(z[:, i : i + 1]) for i in range(FRAMES)], axis=1)
    scale = np.abs(wanted).max()
    assert np.abs(apply(params, z) - wanted).max() < 1e-5 * scale
    # With the layers' last maps drawn, every frame depends on every other.
    drawn = traverse_util.unflatten_dict(
        {
            path: leaf + 0.1 * rng.normal(size=leaf.shape) if is_new(path) else leaf
            for path, leaf in flat(params).items()
        },
        sep="/",
    )
    drawn = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), drawn)
    whole = apply(drawn, z)
    change = np.abs(apply(drawn, z.at[:, 0].add(1.0)) - whole).max(axis=(2, 3, 4))
    assert change.min() > 1e-3 * scale
    # The known frames, the mask and the frame rate have an effect too, on all frames.
    for name in ("masked_video", "mask", "fps"):
        other = {**cond, name: jnp.roll(cond[name], 1, axis=0 if name == "fps" else 1)}
        change = np.abs(apply(drawn, z, other) - whole).max(axis=(2, 3, 4))
        assert change.min() > 1e-4 * scale, name


def test_an_update_changes_only_layers_over_frames(started):
    config, stage, plan, params = started
    frozen, tx = systems.read_frozen(config), optimizer.make_optimizer(config.train)
    current = state.from_params(stage, params, tx, plan)
    before = flat(current.params)
    update = step.make_train_step(stage, tx, config, plan, frozen)
    rng = np.random.default_rng(0)

    def draw(leaf):
        if leaf.dtype == np.uint8:
            return rng.integers(0, 256, size=leaf.shape, dtype=np.uint8)
        return np.asarray(rng.normal(size=leaf.shape)).astype(leaf.dtype)

    batch = jax.tree.map(draw, stage.abstract_batch(2, IMAGES))
    batch["fps"] = np.array([4.0, 8.0], np.float32)
    current, metrics = update(current, batch)
    assert np.isfinite(metrics["loss"])
    after, ema = flat(current.params), flat(current.ema)
    for path, leaf in before.items():
        if is_new(path):
            continue
        np.testing.assert_array_equal(after[path], leaf, err_msg=path)
        np.testing.assert_array_equal(ema[path], leaf, err_msg=path)
    for part in (
        "down_0_block_0_temporal/conv_out",
        "down_0_attention_0_temporal/layer/project_out",
        "masked_video_conv",
        "condition/fps_out",
    ):
        assert np.abs(after[f"{part}/kernel"] - before[f"{part}/kernel"]).max() > 0
    moments = sorted(leaf.shape for leaf in jax.tree.leaves(current.opt_state) if leaf.ndim)
    trained = [leaf.shape for path, leaf in before.items() if is_new(path)]
    assert moments == sorted(2 * trained)


def test_guidance_leads_towards_known_frames_where_training_lacked_them(started):
    config, stage, _, _ = started
    shape = (1, *stage.z_shape)
    cond = {
        "masked_video": jnp.ones(shape),
        "mask": jnp.ones((*shape[:-1], 1)),
        "text_embeddings": jnp.ones((1, 77, 16)),
        NEGATIVE: {"text_embeddings": jnp.zeros((1, 77, 16))},
    }
    null = stage.null(cond, ["masked_video"])
    assert not null["masked_video"].any() and not null["mask"].any()
    np.testing.assert_array_equal(null["text_embeddings"], cond["text_embeddings"])
    guidance = video_ldm.context_guidance(context=3.0, text=5.0)
    guidance.check(stage)
    seen = []

    def denoiser(z, logsnr, cond):
        rows = (cond[name].reshape(len(z), -1) for name in ("mask", "text_embeddings"))
        known, text = (leaf.mean(1) for leaf in rows)
        seen.extend(zip(known.tolist(), text.tolist(), strict=True))
        x = jnp.broadcast_to((known + text)[:, None, None, None, None], z.shape)
        return Prediction(z=z, logsnr=logsnr, x=x, eps=x)

    guided = guidance(denoiser, stage, jnp.zeros(3))(jnp.ones(shape), jnp.zeros(1), cond)
    assert set(seen) == {(0.0, 0.0), (1.0, 0.0), (1.0, 1.0)}
    # 0 without both, 1 with the context, 2 with both: 0 + 3 (1 - 0) + 5 (2 - 1).
    np.testing.assert_allclose(guided.x, 8.0)
    # A model that always had known frames keeps them.
    config = config.copy_and_resolve_references().unlock()
    config.stage.masks = ("first_and_last",)
    between = systems.build(config)
    np.testing.assert_array_equal(between.null(cond)["mask"], cond["mask"])


def test_videos_go_on_and_get_frames_between_twice(started, folder, tmp_path):
    config, stage, _, params = started
    rng = np.random.default_rng(0)
    drawn = {
        path: leaf + np.float32(0.1) * is_new(path) * rng.normal(size=leaf.shape).astype(np.float32)
        for path, leaf in flat(params).items()
    }
    tree = traverse_util.unflatten_dict(drawn, sep="/")
    model = pretrained.load(pretrained.save_model(tmp_path / "model", tree, config))
    key, prompts = jax.random.key(0), ["a cat"]
    slow, fast = (model.sampler(method="trained", steps=2, fps=fps) for fps in (4.0, 8.0))
    given = rng.integers(0, 256, (1, 2, SIDE, SIDE, 3), np.uint8)
    longer = editing.extend(slow, model.params, key, given, prompts, frames=4, context=2)
    assert longer.shape[1] == 4
    np.testing.assert_array_equal(longer[:, :2], given)
    twice = []
    for videos in (given, 255 - given):
        once = editing.interpolate(slow, model.params, key, videos, prompts, factor=2)
        twice.append(editing.interpolate(fast, model.params, key, once, prompts, factor=2))
        np.testing.assert_array_equal(twice[-1][:, ::4], videos)
    assert twice[0].shape[1] == 5
    assert np.any(twice[0][:, 1] != twice[1][:, 1])
    with pytest.raises(ValueError, match="fps = 2: this model was trained with 4, 8 frames"):
        model.sampler(fps=2.0)
    flags = {"motion_bucket": None, "augmentation": None, "decode_frames": None}
    options = argparse.Namespace(job="interpolate", fps=8.0, **flags)
    assert edit_inputs.fitted(options, model) is model
    with pytest.raises(ValueError, match="--fps: this model has no such setting; it has: none"):
        edit_inputs.fitted(options, pretrained.load(folder))
