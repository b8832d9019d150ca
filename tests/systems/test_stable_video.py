"""A published Stable Video Diffusion pipeline, loaded from its folder, samples as in its own
library; its stages of training."""

import dataclasses
import json
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy
from einops import rearrange
from PIL import Image

import vdm_jax
from tests.weights import drawn_weights
from vdm_jax import cli, systems
from vdm_jax.cli import edit, edit_inputs
from vdm_jax.diffusion.predictions import Prediction
from vdm_jax.stage.conditions.still import Micro, Still, measure_motion
from vdm_jax.stage.guidance import ClassifierFree
from vdm_jax.stage.image_encoder import ImageEncoder
from vdm_jax.stage.protocols import Example
from vdm_jax.weights import fetch

GOLDEN = Path(__file__).parents[1] / "weights" / "golden" / "stable_video.safetensors"
STEPS, FRAMES, SIDE = 4, 3, 16


def write_folder(folder):
    """The recorded pipeline's files."""
    with safetensors.safe_open(GOLDEN, framework="numpy") as file:
        files = json.loads(json.loads(file.metadata()["recorded"])["files"])
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            tensors = drawn_weights.draw_all(json.loads(content))
            safetensors.numpy.save_file(tensors, path, {"format": "pt"})
        else:
            path.write_text(content)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pipeline")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        yield write_folder(folder / "model")


@pytest.fixture(scope="module")
def model(folder):
    return vdm_jax.load(folder).changed({"model.decode_frames": FRAMES})


@pytest.fixture(scope="module")
def recorded():
    return safetensors.numpy.load_file(GOLDEN)


def in_order(latents):
    return rearrange(latents, "b f c h w -> b f h w c")


@pytest.fixture(scope="module")
def begun(model, recorded):
    """The condition of the recorded image, with the recorded noise on it."""
    sampler = model.sampler(steps=STEPS)
    noise = rearrange(recorded["image_noise"], "1 c h w -> 1 1 h w c")
    inputs = model.stage.encode([""], inputs={"still": recorded["image"][None]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.random, "normal", lambda key, shape: jnp.asarray(noise))
        begin = jax.jit(
            lambda inputs, frozen: model.stage.begin(
                inputs, 1, jax.random.key(1), sampler.settings, frozen
            )
        )
        return begin(inputs, model.frozen)


def test_latents_equal_the_original_step_by_step(model, recorded, begun):
    sampler = model.sampler(steps=STEPS)
    levels = sampler.logsnrs()

    @jax.jit
    def step(params, z, logsnr_t, logsnr_s, cond):
        denoiser, rule = sampler.denoiser_and_rule(params)

        def denoise(z, logsnr):
            return denoiser(z, jnp.full(1, logsnr), cond)

        return rule.step(jax.random.key(0), denoise, z, (), logsnr_t, logsnr_s)[0]

    np.testing.assert_allclose(begun["still_embedding"][:, 0], recorded["embedding"], atol=1e-5)
    z = jnp.asarray(in_order(recorded["noise"]))
    for i, wanted in enumerate(recorded["latents"]):
        z = step(model.params, z, levels[i], levels[i + 1], begun)
        # The original's latents are x + σ ε, ours α times that.
        scale = np.sqrt(jax.nn.sigmoid(levels[i + 1]))
        wanted = scale * in_order(wanted)
        assert np.abs(z - wanted).max() < 1e-4 * np.abs(wanted).max()


def test_frames_equal_the_original(model, recorded):
    z = jnp.asarray(in_order(recorded["latents"][-1]))
    video = jax.jit(model.stage.space.decode)(z, model.frozen)
    wanted = 2 * recorded["frames"] - 1
    assert video.shape == (1, FRAMES, SIDE, SIDE, 3)
    assert np.abs(np.clip(video, -1, 1) - wanted).max() < 1e-3


def test_large_images_are_squashed_as_in_the_original(model, recorded):
    encoder = model.stage.find(Still).encoder
    assert isinstance(encoder, ImageEncoder)
    image = jnp.asarray(drawn_weights.picture(300, 500)[None], jnp.float32) / 127.5 - 1
    square = rearrange(encoder.prepare(image), "n h w c -> n c h w")
    np.testing.assert_allclose(square[:, :, :16, :16], recorded["large_corner"], atol=1e-4)
    found = encoder(image, model.frozen)
    np.testing.assert_allclose(found, recorded["large_embedding"], atol=1e-4)


def test_the_defaults_are_those_of_the_published_library(model):
    sampler = model.sampler()
    assert (sampler.steps, sampler.rule_name) == (25, "euler")
    assert sampler.guidance == (ClassifierFree(scale=3.0, first=1.0),)
    assert sampler.settings == {"augmentation": 0.02, "fps": 7.0, "motion_bucket": 127.0}
    levels = np.exp(-0.5 * sampler.logsnrs())
    np.testing.assert_allclose(levels[np.array([0, -2, -1])], [700.0, 0.002, 0.0], rtol=1e-4)
    assert model.stage.video_shape == (FRAMES, SIDE, SIDE, 3)
    assert model.fps == 7.0


def test_guidance_rises_and_the_numbers_are_kept(model, begun):
    null = model.stage.null(begun)
    for name, value in begun.items():
        kept = name in ("fps_id", "motion_bucket", "augmentation")
        np.testing.assert_array_equal(null[name], value if kept else np.zeros_like(value))
    assert begun["fps_id"] == 6 and begun["motion_bucket"] == 127
    assert begun["augmentation"] == np.float32(0.02)

    def denoiser(z, logsnr, cond):
        x = z * 0 + cond["still_latents"]
        return Prediction(z=z, logsnr=logsnr, x=x, eps=-x)

    guide = ClassifierFree(scale=3.0, first=1.0)
    z, cond = (
        jnp.zeros((2, 3, 1, 1, 1)),
        {"still_latents": jnp.array([2.0, 4.0]).reshape(2, 1, 1, 1, 1)},
    )
    guided = guide(denoiser, model.stage, jnp.zeros(3))(z, jnp.zeros(2), cond)
    # The null is zero, and g = 1, 2, 3.
    np.testing.assert_allclose(guided.x[:, :, 0, 0, 0], [[2, 4, 6], [4, 8, 12]])
    with pytest.raises(ValueError, match="first_guidance = 1.0: cannot be combined"):
        ClassifierFree(scale=3.0, first=1.0, oscillate_after=2).check(model.stage)


def test_micro_conditions_of_a_clip():
    clip = jnp.zeros((2, 3, 4, 4, 3)).at[0, 1].set(0.5)
    np.testing.assert_allclose(measure_motion(clip), [0.5, 0.0])
    example = Example({}, clip, None, jnp.array([7.0, 24.0]))
    entries = Micro(full_motion=1.0).example(example, jax.random.key(0))
    np.testing.assert_array_equal(entries["fps_id"], [6, 23])
    np.testing.assert_array_equal(entries["motion_bucket"], [128, 0])
    # Half as many frames a second show twice the change between two frames, so the bucket is equal.
    slow = Example({}, clip, None, jnp.array([3.5, 24.0]))
    assert Micro(full_motion=1.0).example(slow, jax.random.key(0))["motion_bucket"][0] == 64
    with pytest.raises(ValueError, match="motion_bucket = 300: must be from 0 to 255"):
        Micro().check({"motion_bucket": 300.0})
    with pytest.raises(ValueError, match="fps = 0.5: must be at least 1"):
        Micro().check({"fps": 0.5})


def run(*arguments):
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return ended.value.code


def test_a_photo_of_any_size_is_animated(folder, tmp_path, capsys):
    photo = tmp_path / "photo.png"
    Image.fromarray(drawn_weights.picture(37, 53)).save(photo)
    out = tmp_path / "out"
    flags = (f"--model={folder}", "--device=cpu", f"--out={out}", f"--input={photo}")
    flags += (
        "--steps=2",
        "--height=16",
        "--width=32",
        "--num_frames=4",
        "--decode_frames=2",
        "--fps=5",
    )
    assert run("edit", "animate", *flags, "--motion_bucket=40", "--augmentation=0.1") == 0
    printed = capsys.readouterr().out
    assert "scaled to cover 16 x 32 pixels and cut around their middle" in printed
    with np.load(out / "samples.npz") as arrays:
        assert arrays["video"].shape == (1, 4, 16, 32, 3)
        assert arrays["fps"] == 5


def test_what_is_not_possible_is_said(model, tmp_path):
    photo = tmp_path / "photo.png"
    Image.fromarray(drawn_weights.picture(24, 16)).save(photo)

    def fitted(model, *flags):
        return edit_inputs.fitted(edit._parse(["animate", *flags]), model)

    with pytest.raises(ValueError, match="animate needs --input"):
        fitted(model, "--prompt=a cat")
    with pytest.raises(ValueError, match="--height=18, --width=32: must be multiples of 4"):
        fitted(model, f"--input={photo}", "--height=18", "--width=32")
    # An upright picture turns the model's size.
    wide = model.changed({"data.image_width": 32})
    assert fitted(wide, f"--input={photo}").stage.video_shape == (FRAMES, 32, 16, 3)
    other = types.SimpleNamespace(stage=dataclasses.replace(model.stage, conditions=()))
    with pytest.raises(ValueError, match="--motion_bucket: this model has no such setting"):
        fitted(other, f"--input={photo}", "--motion_bucket=3")
    with pytest.raises(ValueError, match="use vdm edit animate --input=IMAGE"):
        model.stage.encode([""])
    with pytest.raises(ValueError, match="this model was trained without text"):
        model.stage.check_prompts(["a cat"])
    with pytest.raises(ValueError, match="motion_bucket = 256: must be from 0 to 255"):
        model.sampler(motion_bucket=256.0)


def test_the_folder_is_written_back_bit_by_bit(folder, model, tmp_path):
    out = tmp_path / "out"
    parts = systems.write_published(out, model.config, model.params, "float32")
    assert parts == ["unet", "scheduler", "vae", "image_encoder", "feature_extractor"]
    for path in folder.rglob("*.safetensors"):
        before = safetensors.numpy.load_file(path)
        after = safetensors.numpy.load_file(out / path.relative_to(folder))
        assert before.keys() == after.keys()
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])
    again, first = systems.read_published(out), systems.read_published(folder)
    assert systems.build(again) == systems.build(first)
    with pytest.raises(ValueError, match="model.still = False"):
        config = first.copy_and_resolve_references()
        config.model.still = False
        systems.write_published(tmp_path / "text", config, model.params, "float32")


@pytest.mark.parametrize(
    "file,change,message",
    [
        ("model_index.json", {"text_encoder": []}, "text_encoder: not understood"),
        (
            "unet/config.json",
            {"_class_name": "UNet3D"},
            r"unet/config.json: _class_name = 'UNet3D'",
        ),
        ("scheduler/scheduler_config.json", {"timestep_type": "discrete"}, "'continuous'"),
        ("image_encoder/config.json", {"projection_dim": 8}, "cross_attention_dim = 16"),
    ],
)
def test_a_folder_that_is_not_understood_is_refused_by_name(tmp_path, file, change, message):
    folder = write_folder(tmp_path / "model")
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        systems.build(systems.read_published(folder))
