"""The loss of an autoencoder: its terms, what each of them trains, and what is shown."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.models.autoencoder import AutoencoderKL, AutoencoderTiny, Posterior
from vdm_jax.stage import reconstruction
from vdm_jax.stage.reconstruction import Reconstructed, Reconstruction, Term
from vdm_jax.stage.view import View
from vdm_jax.training import previews

NETWORK = AutoencoderKL(
    channels=(4, 8), layers_per_level=1, latent_channels=2, norm_groups=2, attention=False
)
KL = Term(name="kl", function=reconstruction.kl_divergence, weight=1.0)
L1 = Term(name="l1", function=reconstruction.absolute_error, weight=2.0)
L2 = Term(name="l2", function=reconstruction.squared_error, weight=0.5)


def make(*terms, network=NETWORK, **fields):
    return Reconstruction(network=network, view=View(shape=(2, 8, 8, 3)), terms=terms, **fields)


@pytest.fixture(scope="module")
def params():
    return make(L1).init(jax.random.key(0))


@pytest.fixture(scope="module")
def batch():
    video = np.random.default_rng(0).integers(0, 256, (3, 2, 8, 8, 3), np.uint8)
    return {"video": jnp.asarray(video)}


@pytest.fixture(scope="module")
def gradients(params, batch):
    """Of each term alone."""

    def terms(params):
        metrics = make(L1, KL).loss(params, batch, jax.random.key(1))[1]
        return {name: metrics[name] for name in ("l1", "kl")}

    return jax.jit(jax.jacrev(terms))(params)


def largest(tree):
    return max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(tree))


def test_terms_are_what_their_formulas_say():
    rng = np.random.default_rng(0)
    images, decoded = rng.uniform(-1, 1, (2, 5, 4, 4, 3))
    mean, log_variance = rng.normal(size=(2, 5, 2, 2, 2))
    seen = Reconstructed(images, Posterior(mean, log_variance), decoded)
    assert reconstruction.absolute_error(seen) == pytest.approx(np.abs(images - decoded).mean())
    assert reconstruction.squared_error(seen) == pytest.approx(((images - decoded) ** 2).mean())
    nats = (mean**2 + np.exp(log_variance) - 1 - log_variance) / 2
    wanted = nats.sum((1, 2, 3)).mean() / (4 * 4 * 3)  # an image's, over its values
    assert reconstruction.kl_divergence(seen) == pytest.approx(wanted, rel=1e-5)
    standard = Posterior(np.zeros_like(mean), np.zeros_like(mean))
    assert reconstruction.kl_divergence(seen._replace(posterior=standard)) == 0


def test_the_loss_is_the_weighted_sum_and_frames_are_images(params, batch):
    stage = make(L1, L2)
    loss, metrics = jax.device_get(jax.jit(stage.loss)(params, batch, jax.random.key(1)))
    assert loss == pytest.approx(2.0 * metrics["l1"] + 0.5 * metrics["l2"], rel=1e-6)
    assert metrics["psnr"] == pytest.approx(10 * np.log10(4 / metrics["l2"]), rel=1e-5)
    assert {"latent_mean", "latent_std"} <= metrics.keys()
    backwards = {"video": batch["video"][:, ::-1]}
    found, wanted = (
        np.asarray(stage.reconstruct(params, clip["video"])[1]) for clip in (backwards, batch)
    )
    assert found.shape == batch["video"].shape and found.dtype == np.uint8
    np.testing.assert_array_equal(found[:, ::-1], wanted)


@pytest.mark.parametrize(("data", "part"), [((2, 8, 16, 3), True), ((2, 16, 16, 3), False)])
def test_a_preview_shows_clips_as_they_are_trained_on(params, data, part):
    """Parts of the data's clips, or clips made smaller, above their reconstructions."""
    view = View(shape=(2, 8, 8, 3), data_shape=data, part=part)
    stage = Reconstruction(network=NETWORK, view=view, terms=(L1,))
    video = np.random.default_rng(0).integers(0, 256, (9, *stage.clip_shape), np.uint8)
    current = SimpleNamespace(ema=params)
    shown = previews.make_preview(stage, None, None, {})(current, {"video": video})
    assert shown.shape == (8, 2, 16, 8, 3) and shown.dtype == np.uint8
    seen = video[:8]
    if not part:  # every pixel is the mean of four
        seen = seen.reshape(8, 2, 8, 2, 8, 2, 3).mean((3, 5))
    np.testing.assert_allclose(shown[:, :, :8], seen, atol=1)


def test_the_kl_term_trains_the_encoder_and_the_error_both(gradients):
    assert largest(gradients["kl"]["encoder"]) > 1e-3
    assert largest(gradients["kl"]["decoder"]) == 0
    for part in ("encoder", "decoder"):
        assert largest(gradients["l1"][part]) > 1e-3


def test_the_foreground_weighs_more(params, batch):
    with pytest.raises(ValueError, match="lacks 'mask'; set data.extras"):
        jax.eval_shape(make(L1, foreground=3.0).loss, params, batch, jax.random.key(1))
    assert "mask" in make(L1, foreground=3.0).abstract_batch(1)
    half = np.zeros((3, 2, 8, 8, 1), np.uint8)
    half[:, :, :4] = 7
    masks = jnp.asarray(half), jnp.asarray(7 - half)

    def error(foreground, mask):
        stage = make(L1, foreground=foreground)
        return stage.loss(params, {**batch, "mask": mask}, jax.random.key(1))[1]["l1"]

    errors = jax.jit(lambda: [error(0.0, masks[0]), *(error(3.0, mask) for mask in masks)])()
    plain, above, below = map(float, errors)
    assert above + below == pytest.approx(5 * plain, rel=1e-5)
    assert plain < above < 4 * plain


def test_only_what_matches_is_trained(params):
    trained = make(L1, train_only="decoder|post_quant").trained(params)
    paths = {path[0].key for path, _ in jax.tree_util.tree_leaves_with_path(trained)}
    assert paths == {"decoder", "post_quant_conv"}


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"view": View(shape=(1, 9, 8, 3))}, "9 x 8 pixels: must be multiples of 2"),
        ({"view": View(shape=(1, 8, 8, 1))}, "1 channels: the autoencoder has 3"),
        ({"view": View(shape=(1, 8, 8, 3), crop=(4, 4))}, "whole frames"),
    ],
)
def test_what_does_not_fit_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(make(L1), **fields)


def test_an_autoencoder_without_variance_has_no_kl():
    network = AutoencoderTiny(channels=4, encoder_blocks=(1, 1), decoder_blocks=(1, 1))
    stage = make(KL, network=network)
    video = jax.ShapeDtypeStruct((1, 2, 8, 8, 3), np.uint8)
    params = jax.eval_shape(stage.init, jax.random.key(0))
    with pytest.raises(ValueError, match="no variance; leave it out"):
        jax.eval_shape(stage.loss, params, {"video": video}, jax.random.key(0))
