"""The decoder of an image autoencoder becomes one of clips: it starts as that, is trained against a
discriminator, and the encoder stays as it is."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from vdm_jax import systems
from vdm_jax.models.autoencoder import AutoencoderKL, AutoencoderKLFrameDecoder
from vdm_jax.models.discriminator import PatchDiscriminator
from vdm_jax.parallel import sharding
from vdm_jax.pipelines import initial
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage.adversarial import DISCRIMINATOR
from vdm_jax.systems import autoencoder
from vdm_jax.training import optimizer, state, step
from vdm_jax.weights import autoencoder as weights
from vdm_jax.weights import fetch

FRAMES, SIDE = 3, 8
IMAGE = AutoencoderKL(
    channels=(4, 8), layers_per_level=1, norm_groups=2, attention=False, scaling_factor=0.7
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A published image autoencoder, random."""
    folder = tmp_path_factory.mktemp("autoencoder")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        rng = np.random.default_rng(0)
        params = jax.tree.map(
            lambda leaf: (0.3 * rng.normal(size=leaf.shape)).astype(np.float32),
            weights.shapes(IMAGE),
        )
        weights.write_folder(folder / "vae", IMAGE, params)
        yield folder / "vae"


@pytest.fixture(scope="module")
def started(folder):
    """The configuration, the stage and its plan, and what training starts from."""
    config = autoencoder.default_config().unlock()
    values = json.loads((folder / "config.json").read_text())
    config.model.autoencoder = {**values, "_class_name": "AutoencoderKLFrameDecoder"}
    config.model.train_only = "^decoder/|^discriminator/"
    config.model.discriminator = (4, 8)
    config.loss.adversarial = 0.1
    config.data.update({"num_frames": FRAMES, "image_size": SIDE})
    config.train.update({"batch_size": 2, "warmup_steps": 0, "learning_rate": 1e-3})
    stage = systems.build(config)
    plan = sharding.make_plan(stage, {"data": 1}, jax.devices()[:1])
    return config, stage, plan, initial.params(folder, stage, plan)


@pytest.fixture(scope="module")
def updated(started):
    """The state before and after an update, its metrics, and the batch."""
    config, stage, plan, params = started
    tx = optimizer.make_optimizer(config.train)
    current = state.from_params(stage, params, tx, plan)
    before = flat(current.params)
    video = np.random.default_rng(1).integers(0, 256, (2, FRAMES, SIDE, SIDE, 3), np.uint8)
    update = step.make_train_step(stage, tx, config, plan)
    for _ in range(2):  # the first one moves the zeros that keep gradients from what is before
        current, metrics = update(current, {"video": video})
    return before, current, metrics, video


def flat(params):
    return traverse_util.flatten_dict(jax.tree.map(np.array, params), sep="/")


def test_clips_start_as_decoded_images_and_are_mixed(started, folder):
    _, stage, _, params = started
    assert isinstance(stage.network, AutoencoderKLFrameDecoder)
    image, image_params = weights.read_folder(folder)
    latents = jnp.asarray(np.random.default_rng(2).normal(size=(2 * FRAMES, 4, 4, 4)), jnp.float32)
    decode = jax.jit(lambda p, x: image.apply({"params": p}, x, method="decode"))
    wanted = decode(image_params, latents)
    run = jax.jit(lambda p, x: stage.network.apply({"params": p}, x, FRAMES, method="decode"))
    np.testing.assert_allclose(run(params, latents), wanted, atol=1e-5 * np.abs(wanted).max())
    rng = np.random.default_rng(3)
    drawn = {
        path: jnp.asarray(leaf + rng.normal(size=leaf.shape) * ("_temporal/" in path), jnp.float32)
        for path, leaf in flat(params).items()
    }
    drawn = traverse_util.unflatten_dict(drawn, sep="/")
    change = np.abs(run(drawn, latents.at[0].add(1.0)) - run(drawn, latents)).max((1, 2, 3))
    assert change[:FRAMES].min() > 1e-4 and change[FRAMES:].max() == 0
    with pytest.raises(ValueError, match="frames = 4: does not divide 6"):
        stage.network.apply({"params": params}, latents, 4, method="decode")


def test_an_update_leaves_the_encoder_as_it_is(updated):
    before, current, metrics, _ = updated
    assert all(np.isfinite(value) for value in metrics.values())
    after, ema = flat(current.params), flat(current.ema)
    for path, leaf in before.items():
        if not path.startswith(("decoder/", "discriminator/")):
            np.testing.assert_array_equal(after[path], leaf, err_msg=path)
            np.testing.assert_array_equal(ema[path], leaf, err_msg=path)
    for path in (
        "decoder/conv_in/kernel",
        "decoder/up_1_residual_0_temporal/temporal/conv_out/kernel",
        "decoder/up_1_residual_0_temporal/temporal/conv_in/kernel",
        "discriminator/conv_0/kernel",
    ):
        assert np.any(after[path] != before[path]), path
    trained = [leaf.shape for p, leaf in before.items() if p.startswith(("decoder/", "disc"))]
    moments = sorted(leaf.shape for leaf in jax.tree.leaves(current.opt_state) if leaf.ndim)
    assert moments == sorted(2 * trained)


def test_each_network_is_trained_by_its_own_loss(started, updated):
    _, stage, _, _ = started
    _, current, _, video = updated

    def gradients(part):
        def loss(params):
            return stage.loss(params, {"video": jnp.asarray(video)}, jax.random.key(0))[1][part]

        return jax.tree.map(np.array, jax.jit(jax.grad(loss))(current.params))

    fools, hinge = gradients("adversarial"), gradients("discriminator")
    critic = jax.tree.leaves(fools.pop(DISCRIMINATOR))
    assert not any(leaf.any() for leaf in critic)
    assert any(leaf.any() for leaf in jax.tree.leaves(fools["decoder"]))
    assert any(leaf.any() for leaf in jax.tree.leaves(hinge.pop(DISCRIMINATOR)))
    assert not any(leaf.any() for leaf in jax.tree.leaves(hinge))


def test_it_is_written_without_the_discriminator_in_the_same_scale(started, updated, tmp_path):
    config, stage, _, _ = started
    _, current, _, _ = updated
    systems.write_published(tmp_path / "vae", config, current.ema, "float32")
    network, params = weights.read_folder(tmp_path / "vae")
    assert network == stage.network and network.scaling_factor == 0.7
    for path, leaf in flat(params).items():
        np.testing.assert_array_equal(leaf, flat(current.ema)[path], err_msg=path)
    assert DISCRIMINATOR not in params
    model = pretrained.load(tmp_path / "vae")
    for path, leaf in flat(model.params).items():
        np.testing.assert_array_equal(leaf, flat(params)[path], err_msg=path)


def test_a_patch_is_scored_by_its_surroundings_in_time_and_space():
    network = PatchDiscriminator(channels=(4,), norm_groups=0)
    clips = jax.random.normal(jax.random.key(0), (1, 5, 16, 16, 3))
    params = network.init(jax.random.key(1), clips)
    scores = network.apply(params, clips)
    assert scores.shape == (1, 5, 8, 8, 1)
    change = network.apply(params, clips.at[:, 0, 0, 0].add(1.0)) != scores
    frames, rows = (
        np.flatnonzero(change.any((0, 2, 3, 4))),
        np.flatnonzero(change.any((0, 1, 3, 4))),
    )
    assert list(frames) == [0, 1, 2] and list(rows) == [0, 1]


def test_sizes_that_cannot_be_halved_are_refused(started):
    config = started[0].copy_and_resolve_references().unlock()
    config.model.discriminator = (4, 4, 4, 4)
    with pytest.raises(ValueError, match="8 x 8 pixels: must be multiples of 16"):
        systems.build(config)
