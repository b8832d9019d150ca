"""Video LDM starts as its image model, and training changes only the layers over frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests.systems import test_latent_image
from vdm_jax import systems
from vdm_jax.parallel import sharding
from vdm_jax.pipelines import initial as initial_lib
from vdm_jax.pipelines import model as pretrained
from vdm_jax.systems import video_ldm
from vdm_jax.training import optimizer, state, step
from vdm_jax.weights import fetch

FRAMES, IMAGES = 3, 1


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
    config.data.update({"num_frames": FRAMES, "image_size": 16, "image_frames": IMAGES})
    config.train.update({"batch_size": 2, "warmup_steps": 0, "learning_rate": 1e-3})
    stage = systems.build(config)
    plan = sharding.make_plan(stage, {"data": 1}, jax.devices()[:1])
    return config, stage, plan, initial_lib.params(folder, stage, plan)


def flat(params):
    return traverse_util.flatten_dict(jax.tree.map(np.array, params), sep="/")


def test_a_clip_starts_as_images_and_layers_over_frames_mix_it(started, folder):
    _, stage, _, params = started
    image = pretrained.load(folder)
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(2, *stage.z_shape)), jnp.float32)
    logsnr = jnp.array([2.0, -3.0])
    cond = {"text_embeddings": jnp.asarray(rng.normal(size=(2, 77, 16)), jnp.float32)}
    apply = jax.jit(lambda p, z: stage.network.apply({"params": p}, z, logsnr, cond))
    one = jax.jit(lambda z: image.stage.network.apply({"params": image.params}, z, logsnr, cond))
    wanted = np.concatenate([one(z[:, i : i + 1]) for i in range(FRAMES)], axis=1)
    scale = np.abs(wanted).max()
    assert np.abs(apply(params, z) - wanted).max() < 1e-5 * scale
    # With the layers' last maps drawn, every frame depends on every other.
    drawn = traverse_util.unflatten_dict(
        {
            path: leaf + 0.1 * rng.normal(size=leaf.shape) if "_temporal/" in path else leaf
            for path, leaf in flat(params).items()
        },
        sep="/",
    )
    drawn = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), drawn)
    change = np.abs(apply(drawn, z.at[:, 0].add(1.0)) - apply(drawn, z)).max(axis=(2, 3, 4))
    assert change.min() > 1e-3 * scale


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
    current, metrics = update(current, batch)
    assert np.isfinite(metrics["loss"])
    after, ema = flat(current.params), flat(current.ema)
    for path, leaf in before.items():
        if "_temporal/" in path:
            continue
        np.testing.assert_array_equal(after[path], leaf, err_msg=path)
        np.testing.assert_array_equal(ema[path], leaf, err_msg=path)
    for part in (
        "down_0_block_0_temporal/conv_out",
        "down_0_attention_0_temporal/layer/project_out",
    ):
        assert np.abs(after[f"{part}/kernel"] - before[f"{part}/kernel"]).max() > 0
    moments = sorted(leaf.shape for leaf in jax.tree.leaves(current.opt_state) if leaf.ndim)
    over_frames = [leaf.shape for path, leaf in before.items() if "_temporal/" in path]
    assert moments == sorted(2 * over_frames)
