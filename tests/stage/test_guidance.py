"""Guidance and thresholds hand their fields on, and refuse what the stage cannot do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_stage
from vdm_jax.diffusion import guidance as maths
from vdm_jax.diffusion import windows
from vdm_jax.diffusion.schedules import expand
from vdm_jax.stage import guidance
from vdm_jax.stage.conditions.prompt import Label
from vdm_jax.stage.conditions.scalar import GuidanceScale
from vdm_jax.stage.conditions.source import SourceVideo
from vdm_jax.stage.refinement import Refinement

TEXT = tiny_stage.STAGE.conditions[0]
STAGE = dataclasses.replace(tiny_stage.STAGE, conditions=(TEXT, Label(count=3)))
COND = {"tokens": np.ones((2, 1)), "keep_text": np.ones(2, bool), "keep_label": np.ones(2, bool)}
LEVELS = (-4.0, -1.0, 2.0, 5.0, 8.0)  # of a grid


def denoiser(z, logsnr, cond):
    """Whose x̂ depends on which conditions are dropped, and has values outside of [-1, 1]."""
    heard = 1.0 * cond["keep_text"] + 10.0 * cond["keep_label"] + cond.get("guidance", 0.0)
    x = z * jnp.linspace(0.1, 4.0, z.shape[2])[:, None, None]
    return STAGE.process.denoiser(lambda *_: x + expand(jnp.asarray(heard, z.dtype), z.ndim))(
        z, logsnr, cond
    )


@pytest.fixture(scope="module")
def z():
    return jax.random.normal(jax.random.key(0), (2, 3, 4, 4, 3))


def output(part, z, stage=STAGE, logsnr=0.0):
    guided = part(denoiser, stage, jnp.array(LEVELS))
    return guided(z, jnp.full(2, logsnr), dict(COND)).eps


def plain(z, text, label, logsnr=0.0):
    cond = {"keep_text": jnp.full(2, text), "keep_label": jnp.full(2, label)}
    return denoiser(z, jnp.full(2, logsnr), cond).eps


def test_classifier_free_guidance_of_all_conditions(z):
    expected = plain(z, 0, 0) + 3.0 * (plain(z, 1, 1) - plain(z, 0, 0))
    found = output(guidance.ClassifierFree(scale=3.0), z)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        output(guidance.ClassifierFree(), z), plain(z, 1, 1), rtol=1e-4, atol=1e-4
    )


def test_guidance_oscillates_after_its_first_steps(z):
    part = guidance.ClassifierFree(scale=3.0, oscillate_after=1)
    scales = maths.oscillation(len(LEVELS) - 1, 3.0, constant=1)
    assert len(set(np.asarray(scales).tolist())) == 2
    for level, scale in zip(LEVELS, np.asarray(scales), strict=False):
        null, full = (plain(z, known, known, level) for known in (0, 1))
        found = output(part, z, logsnr=level)
        np.testing.assert_allclose(found, null + scale * (full - null), rtol=1e-4, atol=1e-3)


def test_guidance_acts_between_two_shares_of_the_steps(z):
    steps = len(LEVELS) - 1
    part = guidance.ClassifierFree(scale=3.0, start=1 / steps, end=2 / steps)
    for i, level in enumerate(LEVELS[:-1]):
        null, full = (plain(z, known, known, level) for known in (0, 1))
        expected = null + (3.0 if i == 1 else 1.0) * (full - null)
        np.testing.assert_allclose(output(part, z, logsnr=level), expected, rtol=1e-4, atol=1e-3)


def test_a_step_without_guidance_is_one_evaluation(z):
    evaluated = []

    def counted(z, logsnr, cond):
        jax.debug.callback(lambda z: evaluated.append(z.shape[0]), z)
        return denoiser(z, logsnr, cond)

    def step(z, level):
        part = guidance.ClassifierFree(scale=3.0, end=0.5)(counted, STAGE, jnp.array(LEVELS))
        return part(z, level[None], jax.tree.map(lambda leaf: leaf[:1], COND)).x

    # As in a sampler: mapped over samples, all at the same level.
    many = jax.jit(jax.vmap(step, in_axes=(0, None)))
    for level, rows in ((LEVELS[0], 2), (LEVELS[-2], 1)):
        evaluated.clear()
        jax.block_until_ready(many(z[:, None], jnp.array(level)))
        jax.effects_barrier()
        assert set(evaluated) == {rows}


def test_intervals_that_cannot_be_are_refused():
    for start, end in ((0.5, 0.5), (-0.1, 1.0), (0.0, 1.1)):
        with pytest.raises(ValueError, match=f"guidance_start = {start}, guidance_end = {end}"):
            guidance.ClassifierFree(scale=2.0, start=start, end=end).check(STAGE)
    with pytest.raises(ValueError, match="cannot be combined with oscillate_after"):
        guidance.ClassifierFree(scale=2.0, end=0.5, oscillate_after=1).check(STAGE)


def test_a_distilled_network_takes_the_scale(z):
    stage = dataclasses.replace(STAGE, conditions=(*STAGE.conditions, GuidanceScale()))
    found = output(guidance.ClassifierFree(scale=3.0), z, stage)
    cond = {**COND, "guidance": jnp.full(2, 3.0)}
    np.testing.assert_allclose(found, denoiser(z, jnp.zeros(2), cond).eps, rtol=1e-4, atol=1e-4)


def test_nested_guidance_adds_conditions_one_by_one(z):
    part = guidance.Nested(scales=(("label", 2.0), ("text", 5.0)))
    none, label, both = plain(z, 0, 0), plain(z, 0, 1), plain(z, 1, 1)
    expected = none + 2.0 * (label - none) + 5.0 * (both - label)
    np.testing.assert_allclose(output(part, z), expected, rtol=1e-3, atol=1e-3)
    part.check(STAGE)
    with pytest.raises(ValueError, match="guidance of fps: the model's conditions are label, text"):
        guidance.Nested(scales=(("text", 1.0), ("fps", 2.0))).check(STAGE)


def test_thresholds_have_their_percentile(z):
    for percentile in (0.5, 0.995):
        part = guidance.DynamicThreshold(percentile=percentile)
        expected = maths.dynamic_threshold(denoiser, percentile)(z, jnp.zeros(2), COND).x
        found = part(denoiser, STAGE, jnp.array(LEVELS))(z, jnp.zeros(2), COND).x
        np.testing.assert_array_equal(found, expected)
    assert np.abs(found - maths.dynamic_threshold(denoiser, 0.5)(z, jnp.zeros(2), COND).x).max() > 0
    static = guidance.StaticThreshold()(denoiser, STAGE, jnp.array(LEVELS))
    assert np.abs(static(z, jnp.zeros(2), COND).x).max() == 1
    for percentile in (0.0, 1.1):
        with pytest.raises(ValueError, match=f"percentile = {percentile}: must be above 0"):
            guidance.DynamicThreshold(percentile=percentile).check(STAGE)
    guidance.DynamicThreshold(percentile=1.0).check(STAGE)


@pytest.fixture
def calls(monkeypatch):
    found = []

    def windowed(denoiser, **fields):
        found.append(fields)
        return denoiser

    monkeypatch.setattr(windows, "windowed", windowed)
    return found


class Masked(Label):
    like_z = ("a", "b")


def test_windows_and_tiles_hand_on_their_fields(calls):
    stage = dataclasses.replace(STAGE, conditions=(TEXT, Masked(count=2)))
    guidance.Windows(size=5, overlap=2)(denoiser, stage, jnp.array(LEVELS))
    like = {"like": ("a", "b")}
    assert calls == [{"axis": 1, "size": 5, "overlap": 2, "weights": "ramp", **like}]
    calls.clear()

    class Local(tiny_stage.Network):
        multiple, reach = 4, 3

    stage = dataclasses.replace(stage, network=Local())
    tiles = guidance.Tiles(size=16, overlap=6)
    tiles(denoiser, stage, jnp.array(LEVELS))
    fields = {"size": 16, "overlap": 6, "multiple": 4, **like}
    assert calls == [{"axis": 2, **fields}, {"axis": 3, **fields}]
    tiles.check(stage)  # an overlap of twice the reach is enough
    with pytest.raises(ValueError, match="tile_overlap = 5: must be at least 6"):
        guidance.Tiles(size=16, overlap=5).check(stage)
    with pytest.raises(ValueError, match="tile = 16: tiles are for fully convolutional networks"):
        tiles.check(STAGE)


@pytest.mark.parametrize("overlap", [-1, 0, 3, 4])
def test_windows_overlap_by_less_than_their_size(overlap):
    part = guidance.Windows(size=4, overlap=overlap)
    if 0 <= overlap < 4:
        part.check(STAGE)
    else:
        with pytest.raises(ValueError, match=f"window_overlap = {overlap}: must be from 0 to 3"):
            part.check(STAGE)


@pytest.mark.parametrize(
    ("fill", "low_res", "given", "new", "image"),
    [
        ("repeat", (2, 4, 4), 0.0, 0.2, 1.0),
        ("blend", (2, 4, 4), 0.0, 0.2, 1.0),
        ("blank", (2, 4, 4), 0.0, 1.0, 1.0),
        ("blank", (2, 2, 4), 0.2, 1.0, 1.0),
        ("repeat", (2, 4, 2), 0.2, 0.2, 1.0),
        ("repeat", (4, 2, 2), 0.2, 0.2, 0.2),
    ],
)
def test_deviations_of_given_and_of_new_frames(fill, low_res, given, new, image):
    refinement = Refinement(
        shape=(4, 4, 4, 3), low_res_shape=(*low_res, 3), fill=fill, deviation=0.2
    )
    found = refinement.deviations(jnp.zeros((2, 6, 4, 4, 3)), 2)
    expected = np.array([given, new, given, new, image, image], np.float32)
    assert found.shape == (2, 6, 4, 4, 1)
    np.testing.assert_array_equal(found, np.broadcast_to(expected.reshape(6, 1, 1, 1), found.shape))
    assert refinement.reach == 0
    fields = {"shape": (8, 4, 4, 3), "low_res_shape": (4, 2, 4, 3), "deviation": 0.2}
    both = Refinement(**fields, fill="blend", acceleration=0.5, contrast=0.5)
    assert both.reach == 3 and dataclasses.replace(both, acceleration=0.0).reach == 2
    assert dataclasses.replace(both, contrast=0.0).reach == 3
    for field in ("deviation", "acceleration", "contrast"):
        for value in (-0.1, 1.1):
            name = "residual" if field == "deviation" else f"residual_of_{field}"
            with pytest.raises(ValueError, match=f"{name} = {value}: must be from 0 to 1"):
                dataclasses.replace(both, **{field: value})


def test_temporal_guidance_cuts_what_has_frames_and_refuses_what_it_does_not_combine(z):
    source = SourceVideo(shape=tiny_stage.SHAPE, z_shape=tiny_stage.SHAPE, scale=1.0)
    stage = dataclasses.replace(STAGE, conditions=(*STAGE.conditions, source))
    seen = []

    def watching(z, logsnr, cond):
        seen.append((z.shape, cond["source"].shape))
        return denoiser(z, logsnr, cond)

    part = guidance.Temporal(scale=3.0, temporal=1.5)
    part.check(stage)
    cond = COND | {"source": jnp.zeros_like(z)}
    found = part(watching, stage, jnp.array(LEVELS))(z, jnp.zeros(2), cond)
    assert sorted(seen) == [((4, *z.shape[1:]),) * 2, ((6, 1, *z.shape[2:]),) * 2]
    # This denoiser treats frames alike, so only classifier-free guidance is left.
    expected = plain(z, 0, 0) + 3.0 * (plain(z, 1, 1) - plain(z, 0, 0))
    np.testing.assert_allclose(found.eps, expected, rtol=1e-4, atol=1e-4)
    distilled = dataclasses.replace(STAGE, conditions=(GuidanceScale(),))
    for fields, which, message in (
        ({"temporal": -0.5}, STAGE, "temporal = -0.5: must not be negative"),
        ({"temporal": 1.2, "first": 1.5}, STAGE, "cannot be combined with first_guidance"),
        ({"temporal": 1.2, "oscillate_after": 3}, STAGE, "cannot be combined with oscillate_after"),
        ({"temporal": 1.2, "end": 0.5}, STAGE, "cannot be combined with guidance_start"),
        ({"temporal": 1.2}, distilled, "cannot be combined with a distilled network"),
    ):
        with pytest.raises(ValueError, match=message):
            guidance.Temporal(scale=2.0, **fields).check(which)
