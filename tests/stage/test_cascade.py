"""Stages of a cascade: how their examples are made, how they refine, and the whole in order."""

import dataclasses
import json

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.cascades import NETWORK, TINY
from vdm_jax import systems
from vdm_jax.diffusion import guidance, preconditioning
from vdm_jax.diffusion.predictions import to_prediction
from vdm_jax.diffusion.process import Process
from vdm_jax.pipelines import cascade as cascade_sampling
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage import resize
from vdm_jax.stage import sampler as sampling
from vdm_jax.stage.conditions.video import LowResVideo
from vdm_jax.stage.guidance import Tiles
from vdm_jax.stage.refinement import Plain
from vdm_jax.systems import distillation, imagen_video

KEY = jax.random.key(0)


def config(name, **stage):
    """A stage of the tiny cascade with a network as small as can be, on clips of 8 x 16 x 16."""
    config = imagen_video.stage_config(TINY, name)
    config.model.update(NETWORK)
    config.text.update(encoder="words", vocabulary=("red", "blue"), max_length=3)
    config.text.vocabulary_size = 2
    config.data.num_frames, config.data.image_size, config.data.image_width = 8, 16, 16
    config.train.cond_dropout = 0.0
    config.sample.update(steps=2, guidance=1.0, threshold="static", sampler="ddim")
    config.stage.update(stage)
    return config


BASE, TSR, SSR = (systems.build(config(name)) for name in ("base_8", "tsr_6fps", "ssr_16"))


def batch(images=0):
    rng = np.random.default_rng(0)
    text = BASE.text_encoder.encode(["red", "blue red"])
    found = {"video": rng.integers(256, size=(2, 8, 16, 16, 3), dtype=np.uint8), **text}
    if images:
        found["images"] = rng.integers(256, size=(2, images, 16, 16, 3), dtype=np.uint8)
        found |= {f"image_{k}": np.repeat(v[:, None], images, 1) for k, v in text.items()}
    return {name: jnp.asarray(value) for name, value in found.items()}


def read(stage, seed=0, images=0):
    """A batch as the data's workers read it for a stage."""
    rng, whole = np.random.default_rng(seed), batch(images)
    parts, values = zip(*(stage.reading.draw(rng) for _ in range(2)), strict=True)
    found = whole | {name: jnp.stack([v[name] for v in values]) for name in values[0]}
    clips = np.asarray(whole["video"])
    found["video"] = jnp.stack([part.of(clip) for part, clip in zip(parts, clips, strict=True)])
    if images:
        boxes = [part.box(np.asarray(k)) for part, k in zip(parts, whole["images"], strict=True)]
        found["images"] = jnp.stack(boxes)
    return found


def pixels(video):
    return video.astype(jnp.float32) / 127.5 - 1


def drawn(stage, scale):
    """Parameters with no zeros."""
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(stage.abstract_params())
    return jax.tree.map(lambda a: jnp.asarray(scale * rng.normal(size=a.shape), a.dtype), shapes)


def changed(stage, **fields):
    """The stage with fields of its low-resolution video in another way."""
    conditions = [
        dataclasses.replace(c, **fields) if isinstance(c, LowResVideo) else c
        for c in stage.conditions
    ]
    return dataclasses.replace(stage, conditions=tuple(conditions))


def viewed(stage, **fields):
    """The stage with fields of its view in another way."""
    return dataclasses.replace(stage, view=dataclasses.replace(stage.view, **fields))


def clean(stage):
    return changed(stage, max_augmentation=0.0)


def begin(stage, low, **settings):
    """The condition of `low` at sampling time."""
    cond = stage.encode(["red"] * len(low), inputs={"low_res": np.asarray(low)})
    return stage.begin(jax.tree.map(jnp.asarray, cond), len(low), KEY, settings)


def test_a_base_learns_coarse_clips():
    x, cond, images = BASE.example(read(BASE), KEY)
    chex.assert_trees_all_close(x, resize.coarsen(pixels(batch()["video"]), (4, 8, 8)))
    assert images == 0 and "low_res" not in cond
    chex.assert_trees_all_equal(cond["fps"], jnp.full(2, 3.0 / 2))


def test_a_base_of_several_frame_rates_is_told_which():
    stage = viewed(BASE, frame_strides=(1, 2), data_fps=24.0)
    video = np.arange(8, dtype=np.uint8)[:, None, None, None] * 10
    video = np.broadcast_to(video, (8, 16, 16, 3))
    rng, text = np.random.default_rng(0), BASE.text_encoder.encode(["red"] * 64)
    parts, values = zip(*(stage.reading.draw(rng) for _ in range(64)), strict=True)
    clips = {"video": np.stack([part.of(video) for part in parts]), **text}
    clips["fps"] = np.stack([value["fps"] for value in values])
    x, cond, _ = stage.example(jax.tree.map(jnp.asarray, clips), KEY)
    frames = np.round((np.asarray(x[:, :, 0, 0, 0]) + 1) * 127.5 / 10).astype(int)
    steps = frames[:, 1] - frames[:, 0]
    assert set(steps) == {1, 2} and (np.diff(frames, axis=1) == steps[:, None]).all()
    np.testing.assert_allclose(np.asarray(cond["fps"]), 24.0 / steps)
    assert set(frames[steps == 1][:, 0]) == {0, 1, 2, 3, 4}  # every start there is


@pytest.mark.parametrize("stage,coarse", [(SSR, (8, 8, 8)), (TSR, (4, 8, 8))])
def test_a_finer_stage_is_given_what_it_refines(stage, coarse):
    x, cond, _ = clean(stage).example(batch(), KEY)
    fine = resize.coarsen(pixels(batch()["video"]), stage.video_shape[:3])
    low = resize.refine(resize.coarsen(fine, coarse), stage.video_shape[:3])
    chex.assert_trees_all_close(x, fine)
    chex.assert_trees_all_close(cond["low_res"], low, atol=1e-3)  # noise of log-SNR 20


def test_what_a_stage_refines_can_be_made_of_any_clips():
    clips = np.asarray(batch()["video"])
    expected = resize.coarsen(pixels(batch()["video"]), (4, 8, 8))
    found = pixels(jnp.asarray(TSR.coarse(clips)))
    chex.assert_trees_all_close(found, expected, atol=1 / 127)
    assert BASE.coarse(clips) is None


def test_noise_on_the_condition_has_the_level_that_is_told():
    x, cond, _ = SSR.example(batch(), KEY)
    _, exact, _ = clean(SSR).example(batch(), KEY)
    alpha = jnp.sqrt(jax.nn.sigmoid(cond["low_res_logsnr"]))[:, None, None, None, None]
    noise = cond["low_res"] - alpha * exact["low_res"]
    deviation = noise.reshape(2, -1).std(axis=1)
    chex.assert_trees_all_close(
        deviation, jnp.sqrt(jax.nn.sigmoid(-cond["low_res_logsnr"])), rtol=0.05
    )
    assert cond["low_res_logsnr"][0] != cond["low_res_logsnr"][1]


def test_blank_frames_and_the_images_of_a_tsr_say_nothing():
    blank = changed(TSR, fill="blank")
    _, cond, images = blank.example(batch(images=2), KEY)
    assert images == 2 and cond["low_res"].shape == (2, 10, 8, 8, 3)
    said = jnp.abs(cond["low_res"]).max(axis=(0, 2, 3, 4)) > 0
    np.testing.assert_array_equal(said, [True, False] * 4 + [False, False])
    _, cond, _ = clean(SSR).example(batch(images=2), KEY)
    of_images = resize.coarsen(pixels(batch(images=2)["images"]), (2, 8, 8))
    expected = resize.refine(of_images, (2, 16, 16))
    chex.assert_trees_all_close(cond["low_res"][:, 8:], expected, atol=1e-3)


def test_crops_of_the_video_and_of_its_condition_are_of_one_place():
    whole_x, whole_cond, _ = clean(SSR).example(batch(), KEY)
    stage = clean(viewed(SSR, crop=(8, 4)))
    assert read(stage)["video"].shape == (2, 8, 12, 8, 3)  # whole coarse pixels around the crop
    x, cond, _ = stage.example(read(stage), KEY)
    assert x.shape == cond["low_res"].shape == (2, 8, 8, 4, 3)
    places = []
    for n in range(2):
        fits = [
            (i, j)
            for i in range(9)
            for j in range(13)
            if jnp.array_equal(whole_x[n, :, i : i + 8, j : j + 4], x[n])
        ]
        (i, j), *others = fits
        assert not others
        places.append((i, j))
        low = whole_cond["low_res"][n, :, i : i + 8, j : j + 4]
        chex.assert_trees_all_close(cond["low_res"][n], low, atol=1e-3)
    assert places[0] != places[1]


def test_frames_in_a_row_of_the_video_and_of_its_condition_are_cut_out():
    stage = clean(viewed(SSR, crop=(3, 16, 16)))
    whole_x, whole_cond, _ = clean(SSR).example(batch(images=2), KEY)
    starts = set()
    for seed in range(4):
        x, cond, images = stage.example(read(stage, seed, images=2), KEY)
        assert x.shape == cond["low_res"].shape == (2, 5, 16, 16, 3) and images == 2
        chex.assert_trees_all_equal(x[:, 3:], whole_x[:, 8:])
        for n in range(2):
            fits = [s for s in range(6) if jnp.array_equal(whole_x[n, s : s + 3], x[n, :3])]
            (start,) = fits
            starts.add(start)
            low = whole_cond["low_res"][n, start : start + 3]
            chex.assert_trees_all_close(cond["low_res"][n, :3], low, atol=2e-3)
    assert len(starts) > 2
    with pytest.raises(ValueError, match=r"crop = \(9, 16, 16\): clips are \(8, 16, 16\)"):
        viewed(SSR, crop=(9, 16, 16))


def test_sampling_begins_with_the_condition_in_the_same_form():
    low = jnp.asarray(np.random.default_rng(0).integers(256, size=(2, 8, 8, 8, 3), dtype=np.uint8))
    told = begin(SSR, low)
    refined = resize.refine(pixels(low), (8, 16, 16))
    chex.assert_trees_all_close(told["low_res"], refined, atol=1e-3)
    noisy = begin(SSR, low, augmentation=3.0, fps=12.0)
    chex.assert_trees_all_close(noisy["low_res_logsnr"], jnp.full(2, np.log(3.0)), rtol=1e-6)
    chex.assert_trees_all_close(noisy["fps"], jnp.full(2, 12.0))
    deviation = (noisy["low_res"] - np.sqrt(0.75) * refined).std()
    np.testing.assert_allclose(deviation, 0.5, rtol=0.05)
    with pytest.raises(ValueError, match="low_res: this stage refines a video"):
        SSR.encode(["red", "red"])
    with pytest.raises(ValueError, match=r"low_res: uint8\[2, 8, 4, 8, 3\] was given"):
        begin(SSR, low[:, :, ::2])


def test_a_refined_video_is_told_by_how_it_differs_from_its_condition():
    # Against the exact mean and deviation of Gaussian data, x of variance 1 and y = x − r.
    residual, n = jnp.full((2, 1, 1, 1, 1), 0.3), 400_000
    keys = jax.random.split(KEY, 4)
    shape = (2, 1, 1, n, 1)
    logsnr, low_logsnr = jnp.array([1.0, -2.0]), jnp.array([3.0, 20.0])
    y = np.sqrt(1 - 0.3**2) * jax.random.normal(keys[0], shape)
    x = y + 0.3 * jax.random.normal(keys[1], shape)
    spread = [jnp.sqrt(jax.nn.sigmoid(s))[:, None, None, None, None] for s in (logsnr, -logsnr)]
    (alpha, sigma), eps = spread, jax.random.normal(keys[2], shape)
    low = Process().add_noise(y, jax.random.normal(keys[3], shape), low_logsnr)
    v = alpha * eps - sigma * x
    z = alpha * x + sigma * eps
    found = preconditioning.about_estimate(jnp.zeros(shape), z, logsnr, low, low_logsnr, residual)
    one = (
        preconditioning.about_estimate(jnp.ones(shape), z, logsnr, low, low_logsnr, residual)
        - found
    )
    error = (v - found).std(axis=3).ravel()
    np.testing.assert_allclose(error, one[:, 0, 0, 0, 0], rtol=0.1)
    for i in range(2):  # no linear estimate is much better
        known = np.stack([z[i].ravel(), low[i].ravel()], axis=1)
        best = np.linalg.lstsq(known, np.ravel(v[i]), rcond=None)[1] / n
        assert error[i] < 1.05 * np.sqrt(best[0])


def test_a_network_that_says_nothing_refines_to_its_condition():
    stage = systems.build(config("tsr_6fps", fill="blend", residual=0.1))
    params = drawn(stage, 0.2)
    silent = params | {"output_conv": jax.tree.map(jnp.zeros_like, params["output_conv"])}
    logsnr = jnp.full(2, -20.0)

    def made(params, stage, images=0):
        x, cond, _ = clean(stage).example(batch(images), KEY)
        z = jax.random.normal(KEY, x.shape)
        raw = stage.raw_output(params, z, logsnr, cond, num_images=images)
        return x, cond, to_prediction("v", raw, z, logsnr).x

    x, cond, found = made(silent, stage)
    chex.assert_trees_all_close(found, cond["low_res"], atol=1e-3)
    # What the network says is of the frames that are added only.
    x, cond, found = made(params, stage)
    chex.assert_trees_all_close(found[:, ::2], x[:, ::2], atol=1e-3)
    assert jnp.abs(found - cond["low_res"])[:, 1::2].max() > 0.01
    # Of a TSR's images nothing is known: v is the network's, as without `residual`.
    _, _, ours = made(params, stage, images=2)
    _, _, theirs = made(
        params,
        dataclasses.replace(changed(stage, refinement=None), parametrisation=Plain()),
        images=2,
    )
    chex.assert_trees_all_close(ours[:, 8:], theirs[:, 8:], atol=1e-5)
    assert jnp.abs(ours - theirs)[:, :8].max() > 0.1


def test_frames_between_ones_that_accelerate_may_differ_more_from_their_blend():
    stage = systems.build(
        config("tsr_6fps", fill="blend", residual=0.1, residual_of_acceleration=0.5)
    )
    # Four given frames of 8 x 8. Row 0 is brighter by 0.2 from one to the next; in the last, its
    # second half by 0.6.
    given = np.zeros((1, 4, 8, 8, 3), np.float32)
    given[:, :, 0] = np.array([0, 0.2, 0.4, 0.6])[:, None, None]
    given[:, 3, 0, 4:] = 1.0
    low = resize.refine(jnp.asarray(given), (8, 8, 8), "blend")
    found = np.asarray(stage.parametrisation.deviations(low, 0))[0, ..., 0]
    assert found.shape == (8, 8, 8)
    np.testing.assert_array_equal(found[::2], 0)
    np.testing.assert_allclose(found[1], 0.1, rtol=1e-5)  # what goes on steadily is a blend
    # Near (0, 7) are rows 0 to 3 and columns 4 to 7, of whose 16 pixels 4 accelerate, by 0.4 at the
    # third frame: between it and the second, half of that.
    variance = 0.5**2 * 0.4**2 * 4 / 16
    np.testing.assert_allclose(found[3, 0, 7], np.sqrt(0.1**2 + variance / 2), rtol=1e-5)
    np.testing.assert_allclose(found[5, 0, 7], np.sqrt(0.1**2 + variance), rtol=1e-5)
    np.testing.assert_allclose(found[1:6:2, 4:], 0.1, rtol=1e-5)
    # After the last, twice the change before it: 0.6, as nothing says that it goes on.
    variance = 0.5**2 * 1.2**2 * 4 / 16
    np.testing.assert_allclose(found[7, 0, 7], np.sqrt(0.1**2 + variance), rtol=1e-5)
    # Between equal frames nothing happens, whatever comes then.
    given[:, :3], given[:, 3] = 0.0, 1.0
    still = stage.parametrisation.deviations(
        resize.refine(jnp.asarray(given), (8, 8, 8), "blend"), 0
    )
    np.testing.assert_allclose(still[0, 1:4:2], 0.1, rtol=1e-5)
    assert still[0, 5].min() > 0.5
    _, cond, _ = stage.example(batch(images=2), KEY)
    chex.assert_trees_all_equal(cond["low_res_residual"][:, 8:], jnp.ones((2, 2, 8, 8, 1)))


def test_pixels_may_differ_more_from_bilinear_ones_where_the_condition_varies():
    stage = systems.build(config("ssr_16", residual=0.1, residual_of_contrast=0.5))
    # Of 16 x 16 pixels the right half has colours 0.6, 0.6 and 0 more than the left.
    low = np.zeros((1, 8, 16, 16, 3), np.float32)
    low[:, :, :, 8:, :2] = 0.6
    found = np.asarray(stage.parametrisation.deviations(jnp.asarray(low), 0))[0, ..., 0]
    np.testing.assert_allclose(found[..., [0, 5, 10, 15]], 0.1, rtol=1e-4)  # flat nearby
    # Near column 7 are 3 of one half, 2 of the other: at the frames' upper edge as well.
    variance = 0.5**2 * (2 * 0.6**2 * (0.6 * 0.4)) / 3
    np.testing.assert_allclose(found[..., 7], np.sqrt(0.1**2 + variance), rtol=1e-5)
    # Of images too, each on its own.
    _, cond, _ = stage.example(batch(images=2), KEY)
    assert cond["low_res_residual"].shape == (2, 10, 16, 16, 1)
    of_images = cond["low_res_residual"][:, 8:]
    assert of_images.min() >= 0.1 and of_images.max() > 0.11


def test_errors_of_what_is_added_weigh_alike():
    stage = systems.build(config("ssr_16", residual=0.1, crop=(4, 16, 16)))
    _, cond, _ = stage.example(read(stage), KEY)
    assert cond["low_res_residual"].shape == (2, 4, 16, 16, 1)
    logsnr = jnp.array([3.0, -3.0])
    weight = stage.parametrisation.weight(logsnr, cond)
    outputs = [c * jnp.ones_like(cond["low_res"]) for c in (0.0, 0.5)]
    given = (jnp.zeros_like(outputs[0]), logsnr, cond["low_res"], cond["low_res_logsnr"])
    said = [preconditioning.about_estimate(o, *given, cond["low_res_residual"]) for o in outputs]
    error = ((said[1] - said[0]) ** 2).mean(axis=(2, 3, 4))
    chex.assert_trees_all_close(weight * error, jnp.full((2, 4), 0.25), rtol=1e-3)
    chex.assert_trees_all_equal(SSR.parametrisation.weight(logsnr, {}), jnp.ones(2))


def test_errors_weigh_alike_in_frames_of_which_more_and_less_is_known():
    fields = {"fill": "blend", "residual": 0.02, "residual_of_acceleration": 0.5}
    stage = systems.build(config("tsr_6fps", max_augmentation=0.0, **fields))
    video = np.full((2, 8, 16, 16, 3), 128, np.uint8)
    video[:, 6:] = 250  # all that happens
    _, cond, _ = stage.example({**batch(), "video": jnp.asarray(video)}, KEY)
    logsnr = jnp.array([-6.0, 0.0])
    gain = preconditioning.estimate_gain(logsnr, cond["low_res_logsnr"], cond["low_res_residual"])[
        1
    ]
    squares = np.asarray(gain**2).mean((2, 3, 4))
    assert squares[0, 7] > 300 * squares[0, 1]
    weighed = squares * np.asarray(stage.parametrisation.weight(logsnr, cond))
    np.testing.assert_allclose(weighed[:, 1::2], 1.0, rtol=0.1)  # those that are added
    np.testing.assert_allclose(weighed[:, ::2], 0.0, atol=0.01)


def test_blended_frames_are_between_the_two():
    video = jnp.arange(3.0)[None, :, None, None, None]
    found = resize.refine(video, (12, 1, 1), "blend").ravel()
    np.testing.assert_allclose(found, [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2, 2, 2])


def test_shapes_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="residual = 1.5: must be from 0 to 1"):
        systems.build(config("tsr_6fps", residual=1.5))
    with pytest.raises(ValueError, match="residual = 0.1: this stage refines no video"):
        systems.build(config("base_8", residual=0.1))
    with pytest.raises(ValueError, match="residual_of_acceleration = -1.0: must be from 0 to 1"):
        systems.build(config("tsr_6fps", residual=0.1, residual_of_acceleration=-1.0))
    for name, changes in (("ssr_16", {"residual": 0.1}), ("tsr_6fps", {"fill": "blend"})):
        with pytest.raises(ValueError, match="residual_of_acceleration = 0.5: needs"):
            systems.build(config(name, residual_of_acceleration=0.5, **changes))
    for name, changes in (("ssr_16", {}), ("tsr_6fps", {"residual": 0.1})):
        with pytest.raises(ValueError, match="residual_of_contrast = 0.5: needs"):
            systems.build(config(name, residual_of_contrast=0.5, **changes))
    eps = config("ssr_16", residual=0.1)
    eps.process.prediction = "eps"
    with pytest.raises(ValueError, match="needs process.prediction = 'v', not 'eps'"):
        systems.build(eps)
    with pytest.raises(ValueError, match="whole multiples"):
        systems.build(config("ssr_16", low_res=(8, 5, 8)))
    with pytest.raises(ValueError, match="fill = 'zero'"):
        systems.build(config("tsr_6fps", fill="zero"))
    with pytest.raises(ValueError, match="crop"):
        systems.build(config("ssr_16", crop=(32, 32)))
    with pytest.raises(ValueError, match="frame_strides: 4"):
        systems.build(config("base_8", frame_strides=(4,)))


def test_tiles_of_a_fully_convolutional_stage_are_the_whole():
    wide = config("ssr_16", shape=(2, 64, 64), low_res=(2, 32, 32))
    wide.model.update(spatial_attention="none", norm_groups=0, patch_size=1, skips="level")
    wide.data.num_frames, wide.data.image_size, wide.data.image_width = 2, 64, 64
    stage = systems.build(wide)
    reach = stage.network.reach
    denoiser = stage.denoiser(drawn(stage, 0.2))
    z = jax.random.normal(KEY, (1, *stage.video_shape))
    cond = begin(stage, np.zeros((1, 2, 32, 32, 3), np.uint8))
    whole = jax.jit(denoiser)(z, jnp.zeros(1), cond).x
    tiled = jax.jit(Tiles(size=46, overlap=2 * reach)(denoiser, stage, jnp.zeros(0)))(
        z, jnp.zeros(1), cond
    ).x
    assert jnp.abs(tiled - whole).max() < 1e-5 * jnp.abs(whole).max()

    # The reach is no more than is told, and not much less.
    touched = z.at[0, :, 32, 32].add(1.0)
    moved = jnp.abs(jax.jit(denoiser)(touched, jnp.zeros(1), cond).x - whole).max((0, 1, 4))
    rows = np.flatnonzero(np.asarray(moved.max(1)) > 0)
    assert reach / 2 < 32 - rows.min() <= reach

    with pytest.raises(ValueError, match="twice the network's reach"):
        sampling.Sampler.from_config(stage, {}, tile=46, tile_overlap=2 * reach - 1)
    with pytest.raises(ValueError, match="fully convolutional"):
        sampling.Sampler.from_config(SSR, {}, tile=8, tile_overlap=4)


def test_oscillating_guidance_is_high_then_in_turn():
    scales = guidance.oscillation(7, 15.0, constant=3)
    assert scales == [15.0, 15.0, 15.0, 1.0, 15.0, 1.0, 15.0]
    grid = jnp.linspace(-10, 10, 8)
    z = jnp.ones((7, 2))

    def guided(scale):
        return lambda z, logsnr, cond: to_prediction("x", scale[:, None] * z, z, logsnr)

    seen = guidance.scheduled(guided, scales, grid)(z, grid[:-1], None)
    chex.assert_trees_all_equal(seen.x[:, 0], jnp.array(scales))


def test_a_stage_of_a_cascade_is_distilled_like_any(tmp_path):
    teacher_config = config("ssr_16")
    ladder = distillation.default_config()
    ladder.distill.teacher_steps, ladder.distill.end_steps = 4, 2
    this = distillation.rounds(ladder.distill)[1]
    student_config = distillation.round_config(teacher_config, ladder, this, "teacher", "sha256:0")
    teacher = systems.build(student_config)
    stage = distillation.build_round(teacher, student_config, this)
    params = drawn(stage, 0.1)
    loss, _ = jax.jit(stage.loss)(params, batch(), KEY, {"teacher": params})
    assert np.isfinite(loss) and stage.video_shape == (8, 16, 16, 3)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The files of a base and of an SSR that refines it, untrained."""
    folder = tmp_path_factory.mktemp("cascade")
    base = config("base_8", shape=(8, 8, 8))
    for name, this in (("base_8", base), ("ssr_16", config("ssr_16"))):
        stage = systems.build(this)
        params = drawn(stage, 0.1)
        pretrained.save_model(folder / f"{name}.safetensors", params, this.lock())
    config_ = cascade_sampling.cascade_config(["base_8", "ssr_16"])
    config_.sample.base_8.batch_size = config_.sample.ssr_16.batch_size = 2
    cascade_sampling.save(folder, config_)
    return cascade_sampling.load(folder)


PROMPTS = ["red", "blue", "red blue"]


def test_a_cascade_broken_off_goes_on_and_ends_the_same(stages, tmp_path):
    assert [step.changes for step in stages.steps] == [{"batch_size": 2}] * 2
    whole = list(stages.stream(jax.random.key(7), PROMPTS, tmp_path / "whole"))
    assert [output.videos.shape for output in whole] == [(3, 8, 8, 8, 3), (3, 8, 16, 16, 3)]

    class Crash(Exception):
        pass

    def crash_in_the_second_stage(name, done, total):
        if name == "ssr_16":
            raise Crash

    broken = tmp_path / "broken"
    with pytest.raises(Crash):
        list(stages.stream(jax.random.key(7), PROMPTS, broken, crash_in_the_second_stage))
    assert json.loads((broken / "stages/01_ssr_16.json").read_text())["done"] == 2
    seen = []
    resumed = list(
        stages.stream(jax.random.key(7), PROMPTS, broken, lambda *done: seen.append(done))
    )
    assert seen == [("ssr_16", 3, 3)]  # nothing else was computed again
    for one, other in zip(whole, resumed, strict=True):
        np.testing.assert_allclose(one.videos.astype(int), other.videos.astype(int), atol=1)
    again = list(stages.stream(jax.random.key(8), PROMPTS, broken))
    assert (again[1].videos != whole[1].videos).any()  # another seed: nothing old is kept


def test_stages_in_the_wrong_order_are_refused(stages, tmp_path):
    with pytest.raises(ValueError, match="ssr_16 refines"):
        dataclasses.replace(stages, steps=stages.steps[::-1]).sample(jax.random.key(0), "red")
