"""A published text-to-video pipeline of Wan's kind, loaded from its folder, samples as in its own
library (`record_wan.py`)."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import vdm_jax
from tests.weights import drawn_weights
from vdm_jax import cli
from vdm_jax.diffusion.schedules import flow_to_vp, vp_to_flow
from vdm_jax.systems import video_dit
from vdm_jax.weights import fetch

GOLDEN = Path(__file__).parents[1] / "weights" / "golden" / "wan_pipeline.safetensors"
PROMPT, NEGATIVE, STEPS, GUIDANCE = "a cat runs", "dull", 4, 5.0
CLIP = {"num_frames": 5, "height": 32, "width": 32}


def write_folder(folder):
    """The recorded pipeline's files."""
    with safetensors.safe_open(GOLDEN, framework="numpy") as file:
        metadata = file.metadata()
    files, factors = json.loads(metadata["files"]), json.loads(metadata["factors"])
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".safetensors":
            own = factors if name.startswith("vae/") else {}
            tensors = drawn_weights.draw_all(json.loads(content), own)
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


@pytest.fixture(scope="module", autouse=True)
def short_texts():
    """The text encoder takes as many tokens as the recorded one."""
    defaults = video_dit.default_config

    def shorter():
        config = defaults()
        config.text.max_length = 16
        return config

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(video_dit, "default_config", shorter)
        yield


@pytest.fixture(scope="module")
def model(folder, short_texts):
    return vdm_jax.load(folder)


@pytest.fixture(scope="module")
def recorded():
    return safetensors.numpy.load_file(GOLDEN)


def in_order(latents):
    """Recorded latents, (1, c, f, h, w), with channels last."""
    return jnp.asarray(np.moveaxis(latents, 1, -1))


@pytest.fixture(scope="module")
def step(model):
    """One step of a sampler's rule, compiled: both rules are one program's arguments."""
    stage = model.stage
    inputs = stage.encode([PROMPT], negatives=[NEGATIVE])

    def step_with(sampler):
        @jax.jit
        def run(params, z, state, logsnr_t, logsnr_s):
            cond = stage.begin(inputs, 1, jax.random.key(1), sampler.settings, model.frozen)
            denoiser, rule = sampler.denoiser_and_rule(params)

            def denoise(z, logsnr):
                return denoiser(z, jnp.full(1, logsnr), cond)

            return rule.step(jax.random.key(0), denoise, z, state, logsnr_t, logsnr_s)

        return run

    return step_with


def steps_through(sampler, run, params, noise):
    """z of the flow after each step."""
    levels = sampler.logsnrs()
    z = flow_to_vp(noise, levels[:1])
    state = sampler.rule.init(z)
    for i in range(len(levels) - 1):
        z, state = run(params, z, state, levels[i], levels[i + 1])
        yield vp_to_flow(z, levels[i + 1 : i + 2])


def test_latents_equal_the_original_step_by_step(model, step, recorded):
    sampler = model.sampler(steps=STEPS, guidance=GUIDANCE, negative=NEGATIVE, **CLIP)
    assert sampler.rule_name == "unipc"
    found = steps_through(sampler, step(sampler), model.params, in_order(recorded["noise"]))
    for z, wanted in zip(found, recorded["latents"], strict=True):
        assert np.abs(z - in_order(wanted)).max() < 1e-4 * np.abs(wanted).max()


def test_flow_euler_equals_the_original_step_by_step(model, step, recorded):
    published = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
    config = model.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.scheduler = published
    flow = video_dit.make_scheduler(config)
    network = model.stage.network.clone(time=flow.time)
    euler = dataclasses.replace(model, stage=dataclasses.replace(model.stage, network=network))
    sampler = euler.sampler(sampler="flow_euler", guidance=GUIDANCE, negative=NEGATIVE, **CLIP)
    sampler = dataclasses.replace(sampler, **flow.sampling(STEPS))
    found = steps_through(sampler, step(sampler), model.params, in_order(recorded["noise"]))
    for z, wanted in zip(found, recorded["euler"], strict=True):
        assert np.abs(z - in_order(wanted)).max() < 1e-4 * np.abs(wanted).max()


def test_the_command_writes_the_original_s_video(folder, recorded, monkeypatch, tmp_path):
    noise = in_order(recorded["noise"])
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, *dtype: noise)
    flags = {"prompt": PROMPT, "negative": NEGATIVE, "steps": STEPS, "guidance": GUIDANCE, **CLIP}
    flags |= {"model": folder, "out": tmp_path}
    with pytest.raises(SystemExit) as ended:
        cli.main(["sample", *(f"--{name}={value}" for name, value in flags.items())])
    assert not ended.value.code
    video = np.load(tmp_path / "samples.npz")["video"].astype(int)
    assert video.shape == (1, 5, 32, 32, 3)
    assert np.abs(video - np.round(255 * recorded["video"])).max() <= 1


def test_the_defaults_are_those_of_the_folder(folder):
    config = vdm_jax.systems.read_published(folder)
    stage = vdm_jax.systems.build(config)
    assert stage.video_shape == (81, 480, 832, 3)
    assert stage.z_shape == (21, 60, 104, 4)
    assert config.sample.sampler == "unipc"
    assert (config.sample.steps, config.sample.guidance) == (50, 5.0)
    flow = vdm_jax.systems.scheduler(config)
    assert (flow.shift, flow.order, flow.variant) == (3.0, 2, "bh2")
    levels = flow.sampling(50)["grid"].levels
    # As the published sampler has them with 50 steps.
    times = stage.network.time(jnp.asarray(levels, jnp.float32))
    np.testing.assert_array_equal(times[:4], [999, 993, 986, 979])
    assert times[-1] == 0


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"num_frames": 6}, "frames = 6: must be 1 more than a multiple of 4"),
        ({"height": 24}, "height = 24: must be a multiple of 16"),
        ({"width": 0}, "width = 0: must be at least 1"),
    ],
)
def test_sizes_that_cannot_be_sampled_are_refused(changes, message, model):
    with pytest.raises(ValueError, match=message):
        _ = model.sampler(**changes).z_shape


@pytest.mark.parametrize(
    "file,change,message",
    [
        ("model_index.json", {"_class_name": "WanVACEPipeline"}, "WanVACEPipeline.*WanPipeline"),
        ("model_index.json", {"boundary_ratio": 0.9}, "boundary_ratio = 0.9: allowed is None"),
        ("model_index.json", {"expand_timesteps": True}, "expand_timesteps = True: allowed is F"),
        ("model_index.json", {"transformer_2": ["diffusers", "X"]}, "transformer_2 = .*Wan 2.1"),
        ("model_index.json", {"image_encoder": ["a", "b"]}, "image_encoder: not understood"),
        ("transformer/config.json", {"in_channels": 8}, "in_channels = 8: the autoencoder's"),
        ("vae/config.json", {"is_residual": True}, "vae/config.json: is_residual = True"),
        ("scheduler/scheduler_config.json", {"solver_order": 3}, "solver_order = 3: allowed are"),
        ("scheduler/scheduler_config.json", {"use_flow_sigmas": False}, "use_flow_sigmas = False"),
        ("text_encoder/config.json", {"model_type": "bert"}, "model_type = 'bert'"),
    ],
)
def test_a_folder_that_is_not_understood_is_refused_by_name(tmp_path, file, change, message):
    folder = write_folder(tmp_path)
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        vdm_jax.systems.build(vdm_jax.systems.read_published(folder))


@pytest.mark.parametrize(
    "field,value,message",
    [
        ("data.image_width", 24, "data.image_width = 24: must be multiples of 16"),
        ("model.dtype", "float16", "model.dtype = 'float16': allowed are"),
        ("text.encoder", "clip_l", "text.encoder = 'clip_l': model.transformer.text_dim = 16"),
    ],
)
def test_a_configuration_that_does_not_fit_is_refused(model, field, value, message):
    config = model.config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict({field: value})
    with pytest.raises(ValueError, match=message):
        video_dit.build(config)


def test_a_missing_part_is_named(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "vae").rename(folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match="vae: no such folder"):
        vdm_jax.systems.read_published(folder)


def test_the_folder_is_written_back_bit_by_bit(folder, model, tmp_path):
    out = tmp_path / "out"
    parts = vdm_jax.systems.write_published(out, model.config, model.params, "float32")
    assert parts == ["transformer", "scheduler", "vae", "text_encoder", "tokenizer"]
    for part in ("transformer", "vae", "text_encoder"):
        (file,) = (folder / part).glob("*.safetensors")
        wanted = safetensors.numpy.load_file(file)
        found = safetensors.numpy.load_file(out / part / file.name)
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            np.testing.assert_array_equal(found[name], tensor, name)
    index, wanted = (
        json.loads((where / "model_index.json").read_text()) for where in (out, folder)
    )
    assert index.items() <= wanted.items()
    again = vdm_jax.systems.read_published(out)
    assert again.model.transformer.to_dict().items() >= {"num_layers": 2}.items()
    assert vdm_jax.systems.scheduler(again) == vdm_jax.systems.scheduler(model.config)


def test_training_takes_the_shifted_flow(model):
    process = model.stage.process
    assert (process.prediction, process.loss_name) == ("velocity", "velocity_mse")
    logsnr = process.training_schedule(jnp.linspace(0.01, 0.99, 99))
    # The median of logit-normal times, 1/2, shifted by 3.
    median = 1 / (1 + jnp.exp(0.5 * logsnr[49]))
    np.testing.assert_allclose(median, 3 / (1 + 3), rtol=1e-4)


def test_a_training_step_has_a_gradient_for_every_parameter(model):
    config = model.config.copy_and_resolve_references()
    with config.unlocked():
        config.data.update({"num_frames": 5, "image_size": 16, "image_width": 32})
    stage = vdm_jax.systems.build(config)
    assert stage.z_shape == (2, 2, 4, 4)
    random = np.random.default_rng(0)
    batch = {}
    for name, leaf in stage.abstract_batch(2).items():
        values = random.integers(0, 2, leaf.shape)
        batch[name] = (values * (127 if leaf.dtype == np.uint8 else 1)).astype(leaf.dtype)

    run = jax.jit(jax.value_and_grad(stage.loss, has_aux=True))
    (loss, metrics), gradients = run(model.params, batch, jax.random.key(0), model.frozen)
    assert np.isfinite(loss) and loss > 0 and metrics.keys() == {"x_mse", "eps_mse"}
    assert all(np.isfinite(leaf).all() and leaf.any() for leaf in jax.tree.leaves(gradients))
