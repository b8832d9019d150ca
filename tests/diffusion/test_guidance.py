import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.guidance import (
    classifier_free,
    dynamic_threshold,
    static_clip,
    temporal,
    zero_null,
)
from vdm_jax.diffusion.predictions import to_prediction
from vdm_jax.diffusion.schedules import alpha_sigma

SHAPE = (3, 2, 4, 4, 1)
LOGSNR = jnp.array([-20.0, 0.5, 20.0])
Z = jnp.asarray(np.random.default_rng(0).normal(size=SHAPE), jnp.float32)
COND = {
    "text": jnp.asarray(np.random.default_rng(1).normal(size=(3, 5)), jnp.float32),
    "mask": jnp.ones((3, 5), bool),
}


def denoiser(z, logsnr, cond):
    """v prediction that depends on everything, and on each example alone."""
    text = jnp.sum(jnp.where(cond["mask"], cond["text"], 0.3), axis=1)
    shift = (text + 0.1 * jnp.tanh(logsnr)).reshape(-1, 1, 1, 1, 1)
    return to_prediction("v", jnp.sin(z + shift) + 0.2 * z, z, logsnr)


def learned_null(cond):
    return {"text": jnp.full_like(cond["text"], 0.7), "mask": jnp.zeros_like(cond["mask"])}


def evaluate(guided, cond=COND):
    return jax.jit(guided)(Z, LOGSNR, cond)


@functools.cache
def reference(null):
    return evaluate(denoiser), evaluate(denoiser, null(COND))


@pytest.mark.parametrize("null", [zero_null, learned_null])
@pytest.mark.parametrize("scale", [0.0, 2.0, 7.5, jnp.array([0.0, 1.0, 4.0])])
def test_classifier_free_is_linear_in_the_scale_in_every_form(scale, null):
    conditional, unconditional = reference(null)
    guided = evaluate(classifier_free(denoiser, scale, null))
    g = np.asarray(scale).reshape(-1, 1, 1, 1, 1)
    for form in ("x", "eps", "v", "velocity"):
        low, high = np.asarray(getattr(unconditional, form)), np.asarray(getattr(conditional, form))
        expected = low + g * (high - low)
        np.testing.assert_allclose(getattr(guided, form), expected, atol=1e-5, err_msg=form)
    # VDM's way of writing it, w = g − 1.
    w = g - 1
    papers = (1 + w) * np.asarray(conditional.eps) - w * np.asarray(unconditional.eps)
    np.testing.assert_allclose(guided.eps, papers, atol=1e-5)
    np.testing.assert_array_equal(guided.z, Z)
    np.testing.assert_array_equal(guided.logsnr, LOGSNR)
    # x̂ and ε̂ still explain z, at λ = ±20 too.
    alpha, sigma = (c.reshape(-1, 1, 1, 1, 1) for c in alpha_sigma(LOGSNR))
    np.testing.assert_allclose(alpha * guided.x + sigma * guided.eps, Z, atol=1e-5)


def test_scale_one_is_the_denoiser_itself_and_a_traced_one_its_value():
    assert classifier_free(denoiser, 1.0) is denoiser
    assert classifier_free(denoiser, 1) is denoiser
    traced = evaluate(classifier_free(denoiser, jnp.array(1.0)))
    np.testing.assert_allclose(traced.x, reference(zero_null)[0].x, atol=1e-6)


def test_classifier_free_evaluates_once_on_the_doubled_batch():
    calls = []

    def counted(z, logsnr, cond):
        calls.append((z.shape, logsnr.shape, cond["text"].shape))
        return denoiser(z, logsnr, cond)

    classifier_free(counted, 3.0)(Z, LOGSNR, COND)
    assert calls == [((6, *SHAPE[1:]), (6,), (6, 5))]


def test_conditions_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"\(3, 5\).*\(5,\).*batch size 3"):
        classifier_free(denoiser, 2.0, lambda cond: jax.tree.map(lambda a: a[0], cond))(
            Z, LOGSNR, COND
        )


def test_static_clip():
    before, after = reference(zero_null)[0], evaluate(static_clip(denoiser))
    assert np.abs(before.x).max() > 1  # there is something to clip
    # Two programs, which may fuse and so round differently; the bounds themselves are exact.
    np.testing.assert_allclose(after.x, np.clip(before.x, -1, 1), atol=1e-6)
    assert np.abs(after.x).max() == 1
    assert np.all(np.isfinite(after.eps))
    alpha, sigma = (c.reshape(-1, 1, 1, 1, 1) for c in alpha_sigma(LOGSNR))
    np.testing.assert_allclose(alpha * after.x + sigma * after.eps, Z, atol=1e-5)
    other = evaluate(static_clip(denoiser, -0.25, 0.5))
    np.testing.assert_allclose(other.x, np.clip(before.x, -0.25, 0.5), atol=1e-6)
    assert (other.x.min(), other.x.max()) == (-0.25, 0.5)


@pytest.mark.parametrize(("percentile", "minimum"), [(0.995, 1.0), (0.8, 0.5), (0.5, 100.0)])
def test_dynamic_threshold_is_imagens(percentile, minimum):
    before = np.asarray(reference(zero_null)[0].x)
    after = evaluate(dynamic_threshold(denoiser, percentile, minimum))
    for x, actual in zip(before, after.x, strict=True):
        s = max(np.quantile(np.abs(x), percentile), minimum)
        np.testing.assert_allclose(actual, np.clip(x, -s, s) / s * minimum, atol=1e-6)
    assert np.abs(after.x).max() <= minimum * (1 + 1e-6)
    assert np.all(np.isfinite(after.eps))
    if minimum == 100.0:  # nothing reaches the bound, nothing changes
        np.testing.assert_allclose(after.x, before, atol=1e-6)


def test_guidance_composes_by_nesting():
    composed = evaluate(dynamic_threshold(classifier_free(denoiser, 4.0, learned_null)))
    conditional, unconditional = (np.asarray(p.x) for p in reference(learned_null))
    for low, high, actual in zip(unconditional, conditional, composed.x, strict=True):
        x = low + 4 * (high - low)
        s = max(np.quantile(np.abs(x), 0.995), 1.0)
        np.testing.assert_allclose(actual, np.clip(x, -s, s) / s, atol=1e-5)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"percentile=99\.5 must be in \(0, 1\]"):
        dynamic_threshold(denoiser, percentile=99.5)
    with pytest.raises(ValueError, match=r"minimum=0\.0"):
        dynamic_threshold(denoiser, minimum=0.0)
    with pytest.raises(ValueError, match=r"low=1\.0 must be below high=-1\.0"):
        static_clip(denoiser, 1.0, -1.0)


def mixing(z, logsnr, cond):
    """A video model: each frame depends on all of them, on the clip's text and on its own
    structure."""
    text = cond["text"].sum(axis=1).reshape(-1, 1, 1, 1, 1)
    raw = jnp.sin(z + text) + (1 + text) * z.mean(axis=1, keepdims=True) + cond["structure"]
    return to_prediction("v", raw, z, logsnr)


def without_text(cond):
    return {**cond, "text": jnp.zeros_like(cond["text"])}


@pytest.mark.parametrize("scale", [0.0, 1.0, 7.5])
@pytest.mark.parametrize("over_time", [0.0, 0.5, 1.0, 1.5])
def test_temporal_guidance_is_the_papers_sum(scale, over_time):
    structure = jnp.asarray(np.random.default_rng(2).normal(size=SHAPE), jnp.float32)
    cond = {"text": COND["text"], "structure": structure}
    null = without_text(cond)
    guided = temporal(mixing, scale, over_time, without_text, like=("structure",))
    found = evaluate(guided, cond)
    video, text = mixing(Z, LOGSNR, null), mixing(Z, LOGSNR, cond)
    for form in ("x", "eps"):
        # The image model: each frame by itself.
        alone = np.concatenate(
            [
                getattr(
                    mixing(Z[:, i : i + 1], LOGSNR, {**null, "structure": structure[:, [i]]}), form
                )
                for i in range(SHAPE[1])
            ],
            axis=1,
        )
        whole, heard = np.asarray(getattr(video, form)), np.asarray(getattr(text, form))
        wanted = alone + over_time * (whole - alone) + scale * (heard - whole)
        bound = 1e-5 * max(1.0, np.abs(wanted).max())
        np.testing.assert_allclose(getattr(found, form), wanted, atol=bound, err_msg=form)
    np.testing.assert_array_equal(found.z, Z)
    np.testing.assert_array_equal(found.logsnr, LOGSNR)
