"""Text2Video-Zero against recordings of its published code, on drawn weights, and what motion,
masks, control, prompt and source do."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from einops import rearrange

import vdm_jax
from tests.systems.test_latent_image import write_folder
from tests.weights import drawn_weights
from vdm_jax.diffusion import latent_motion
from vdm_jax.models.blocks.cross_frame import CrossFrame
from vdm_jax.pipelines import text2video_zero as pipeline
from vdm_jax.stage.conditions.source import SourceVideo
from vdm_jax.systems import latent_image
from vdm_jax.systems.text2video_zero import Text2VideoZero
from vdm_jax.weights import controlnet as controlnet_weights
from vdm_jax.weights import fetch

GOLDEN = Path(__file__).parent / "golden" / "text2video_zero.safetensors"
PROMPT, NEGATIVE, GUIDANCE, IMAGE_GUIDANCE = "a cat", "dull", 7.5, 1.5
SETTINGS = {"negative": NEGATIVE, "guidance": GUIDANCE}
# Timesteps of the recording with 10 steps: those 8 and 6 before the last.
FEW = Text2VideoZero(t=801, t_prime=601)


@pytest.fixture(scope="module")
def recorded():
    return safetensors.numpy.load_file(GOLDEN)


@pytest.fixture(scope="module")
def networks():
    with safetensors.safe_open(GOLDEN, "numpy") as file:
        return json.loads(file.metadata()["networks"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text2video_zero")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        yield write_folder(folder / "model")


@pytest.fixture(scope="module")
def model(folder):
    return vdm_jax.load(folder)


def write_network(folder, network):
    """A network's folder, of a recording's config.json and shapes."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(network["config"]))
    tensors = drawn_weights.draw_all(network["shapes"])
    safetensors.numpy.save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def controlnet(networks, folder):
    return controlnet_weights.read_folder(write_network(folder / "cn", networks["controlnet"]))


@pytest.fixture(scope="module")
def editor(networks, folder):
    """The model that edits by instruction."""
    edited = write_folder(folder / "editor")
    (edited / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    write_network(edited / "unet", networks["unet"])
    index = json.loads((edited / "model_index.json").read_text())
    index["_class_name"] = "StableDiffusionInstructPix2PixPipeline"
    (edited / "model_index.json").write_text(json.dumps(index))
    return vdm_jax.load(edited)


def as_video(latents):
    """Recorded latents, (f, c, h, w), as a video."""
    return jnp.asarray(rearrange(latents, "f c h w -> 1 f h w c"))


def run(adapted, sampler, noise, **inputs):
    """The last latents, from the noise of all frames."""
    stage, key = sampler.stage, jax.random.key(0)

    @jax.jit
    def last(params, frozen, noise, inputs):
        cond = stage.begin(inputs, 1, key, sampler.settings, frozen)
        denoiser, rule = sampler.denoiser_and_rule(params, frozen=frozen)
        return sampler.run(key, denoiser, rule, noise, cond)

    found = stage.encode([PROMPT], negatives=[NEGATIVE], inputs=inputs)
    return last(adapted.model.params, sampler.frozen, noise, found)


def assert_close(found, wanted):
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() < 1e-4 * np.abs(wanted).max()


def starting_noise(recorded, name):
    return jnp.concatenate(
        [as_video(recorded[f"{name}/noise"]), as_video(recorded[f"{name}/forward"])], axis=1
    )


@dataclasses.dataclass(frozen=True)
class Watched:
    """A step rule that hands what each step returns to `see`."""

    rule: Any
    see: Callable

    def init(self, z):
        return self.rule.init(z)

    def step(self, *arguments):
        z, state = self.rule.step(*arguments)
        jax.debug.callback(self.see, z, ordered=True)
        return z, state


def test_latents_equal_the_original_step_by_step(model, recorded):
    adapted, found = pipeline.adapt(model, 5, FEW), []
    sampler = adapted.sampler(steps=10, **SETTINGS)
    assert sampler.places == (1, 3)
    sampler = dataclasses.replace(sampler, rule=Watched(sampler.rule, found.append))
    run(adapted, sampler, starting_noise(recorded, "steps")).block_until_ready()
    wanted = [*recorded["steps/first"], *recorded["steps/latents"]]
    for ours, theirs in zip(found, wanted, strict=True):
        assert_close(np.asarray(ours), as_video(theirs))


def test_the_defaults_are_those_of_the_original_also_in_chunks(model, recorded):
    """In chunks of the first frame and one other."""
    assert pipeline.adapt(model).zero == Text2VideoZero()
    adapted = pipeline.adapt(model, 3, Text2VideoZero(chunk=2))
    sampler = adapted.sampler(**SETTINGS)
    assert (sampler.steps, sampler.places) == (50, (2, 5))
    timesteps = model.schedule.timestep(sampler.logsnrs())
    np.testing.assert_allclose(timesteps[np.array(sampler.places)], [941, 881], atol=1e-3)
    found = run(adapted, sampler, starting_noise(recorded, "default"))
    assert_close(found, as_video(recorded["default/latents"]))


def test_the_noise_between_t_prime_and_t_is_that_of_the_timesteps_below(model):
    alphas = 1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    for exact, wanted in ((False, alphas[881:941]), (True, alphas[882:942])):
        adapted = pipeline.adapt(model, 2, Text2VideoZero(exact_noise=exact))
        np.testing.assert_allclose(adapted.sampler().kept_share, wanted.prod(), rtol=1e-6)


def test_with_a_controlnet_latents_equal_the_original(model, controlnet, recorded):
    adapted = pipeline.adapt(model, 3, controlnet=controlnet)
    sampler = adapted.sampler(steps=4, **SETTINGS)
    assert sampler.noise.shared
    noise = jnp.repeat(as_video(recorded["control/noise"]), 3, axis=1)
    found = run(adapted, sampler, noise, hint=recorded["control/hint"][None])
    assert_close(found, as_video(recorded["control/latents"]))


def test_edits_by_instruction_equal_the_original(editor, recorded):
    adapted = pipeline.adapt(editor, 3)
    sampler = adapted.sampler(steps=4, image_guidance=IMAGE_GUIDANCE, **SETTINGS)
    assert sampler.guidance_scale == GUIDANCE
    noise = as_video(recorded["edit/noise"])
    found = run(adapted, sampler, noise, source=recorded["edit/source"][None])
    assert_close(found, as_video(recorded["edit/latents"]))


def test_a_model_that_edits_is_written_back(editor, tmp_path):
    latent_image.write_published(tmp_path, editor.config, editor.params, "float32")
    again = vdm_jax.load(tmp_path)
    assert again.stage.network == editor.stage.network
    assert again.stage.find(SourceVideo) == editor.stage.find(SourceVideo)
    assert again.stage.find(SourceVideo).scale == editor.stage.space.autoencoder.scaling_factor


@pytest.mark.parametrize("side", [16, 64])
def test_the_shift_is_the_original_s(recorded, side):
    for name, (x, y) in {"warp": (12, 12), "warp_other": (-37.5, 20)}.items():
        rows, columns = Text2VideoZero(motion=(x, y)).offsets(8, side, side)
        np.testing.assert_array_equal(rows, recorded[f"{name}/{side}/rows"])
        np.testing.assert_array_equal(columns, recorded[f"{name}/{side}/columns"])


def test_the_published_motion_is_a_staircase_in_small_latents():
    moved = {side: latent_motion.sources(side, 12.0 * np.arange(8))[:, 0] for side in (16, 64)}
    assert moved[64].tolist() == [0, 1, 3, 4, 6, 7, 9, 10]
    assert moved[16].tolist() == [0, 0, 1, 1, 1, 2, 2, 3]
    whole = latent_motion.sources(4, np.array([0.0, 1.0, -2.0, 4.0, 9.0]), "latent")
    np.testing.assert_array_equal(
        whole, [[0, 1, 2, 3], [1, 2, 3, 3], [1, 0, 0, 1], [3, 2, 1, 0], [1, 2, 3, 3]]
    )


@pytest.fixture(scope="module")
def masked(model):
    """A sampler that takes masks, three frames in two steps, and its last latents as a function of
    masks and prompt."""
    zero = Text2VideoZero(motion=(1, -2), unit="latent")
    adapted = pipeline.adapt(model, 3, zero, foreground=True)
    sampler = adapted.sampler(steps=2, **SETTINGS)
    noise = jax.random.normal(jax.random.key(1), (1, *sampler.z_shape))

    @jax.jit
    def last(params, inputs):
        cond = sampler.stage.begin(inputs, 1, jax.random.key(0), {}, sampler.frozen)
        denoiser, rule = sampler.denoiser_and_rule(params)
        return sampler.run(jax.random.key(0), denoiser, rule, noise, cond)

    def sample(masks, prompt=PROMPT):
        inputs = {"foreground": np.asarray(masks, np.uint8)[None]}
        found = sampler.stage.encode([prompt], negatives=[NEGATIVE], inputs=inputs)
        return last(adapted.model.params, found)

    return sampler, sample


def test_masks_and_the_prompt_reach_the_result(masked):
    sampler, sample = masked
    assert sampler.places == (0, 1)
    everywhere = np.ones(sampler.video_shape[:3])[..., None]
    kept = sample(everywhere)
    smoothed = sample(0 * everywhere)
    assert np.abs(smoothed - kept)[:, 1:].max() > 1e-2
    assert_close(smoothed[:, :1], kept[:, :1])
    other = sample(everywhere, "a dog")
    assert np.abs(other - kept).max() > 1e-3


def test_the_background_is_the_first_frame_s_where_no_object_is_or_was():
    """Every place by itself."""
    rng = np.random.default_rng(0)
    z = rng.normal(size=(1, 3, 5, 6, 2)).astype(np.float32)
    foreground = rng.random((1, 3, 5, 6, 1)) < 0.3
    zero = Text2VideoZero(motion=(1, -2), unit="latent")
    rows, columns = zero.offsets(3, 5, 6)
    found = latent_motion.smooth_background(
        jnp.asarray(z), jnp.asarray(foreground), rows, columns, 0.6
    )
    expected = z.copy()
    for k, y, x in np.ndindex(3, 5, 6):
        source = (rows[k, y], columns[k, x])
        if not (foreground[0, k, y, x, 0] or foreground[0, 0][source][0]):
            expected[0, k, y, x] = 0.4 * z[0, k, y, x] + 0.6 * z[0, 0][source]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert (found != z).any() and (found == z).any()


def test_masks_grow_by_two_places():
    mask = np.zeros((1, 2, 9, 9, 1), bool)
    mask[0, 1, 4, 1] = True
    found = np.asarray(latent_motion.dilated(jnp.asarray(mask), 5))
    assert not found[0, 0].any()
    assert found[0, 1, 2:7, :4].all() and found.sum() == 20


def test_objects_are_found_in_a_first_result(model):
    seen = []

    def masks(videos):
        seen.append(videos)
        return np.zeros(videos.shape[:4], bool)

    zero = dataclasses.replace(FEW, masks=masks)
    changes = {"steps": 2, "batch_size": 2, **SETTINGS}
    prompts = [PROMPT, "a dog", PROMPT]
    found = pipeline.adapt(model, 2, zero).sample(jax.random.key(0), prompts, **changes)
    assert found.shape == (3, 2, 16, 16, 3)
    assert [len(videos) for videos in seen] == [2, 1]
    first = np.concatenate(seen)
    assert np.abs(first.astype(int) - found).max() > 2
    np.testing.assert_allclose(first[:, 0].astype(int), found[:, 0], atol=1)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"start": "nowhere"}, "start = 'nowhere': allowed are motion, independent, shared"),
        ({"unit": "metre"}, "unit = 'metre': allowed are picture, latent"),
        ({"motion": (float("nan"), 0)}, "motion = .*finite"),
        ({"t": 100}, "t_prime = 881, t = 100: must be 0 <= t_prime < t < 1000"),
        ({"chunk": 1}, "chunk = 1: must be at least 2"),
        ({"background": 1.5}, "background = 1.5: must be from 0 to 1"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Text2VideoZero(**fields)


def test_what_does_not_fit_is_refused_before_anything_is_compiled(model, controlnet, editor):
    with pytest.raises(ValueError, match="num_frames = 0"):
        pipeline.adapt(model, 0)
    with pytest.raises(ValueError, match="needs a latent image model"):
        pipeline.adapt(vdm_jax.load("moving_shapes"), 8)
    with pytest.raises(ValueError, match=r"frames = \(5,\): 5: a clip of 3 frames"):
        pipeline.adapt(model, 3, Text2VideoZero(attention=CrossFrame(frames=(5,))))
    with pytest.raises(ValueError, match="start = 'shared': masks of a foreground"):
        pipeline.adapt(model, 3, controlnet=controlnet, foreground=True)
    adapted = pipeline.adapt(model, 3)
    with pytest.raises(ValueError, match="steps = 1: motion in latents needs at least 2"):
        adapted.sampler(steps=1)
    with pytest.raises(ValueError, match="image_guidance = 2: this model edits no video"):
        adapted.sampler(image_guidance=2.0)
    with pytest.raises(ValueError, match="source: this model edits a video, and none was given"):
        pipeline.adapt(editor, 3).sample(jax.random.key(0), [PROMPT])
    sampler = pipeline.adapt(model, 3, controlnet=controlnet).sampler()
    assert (sampler.steps, sampler.guidance_scale) == (20, 9.0)
