"""A published text-to-image pipeline, loaded from its folder, samples as in its own library."""

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

import vdm_jax
from tests.weights import drawn_weights
from vdm_jax import cli
from vdm_jax.cli import compiling
from vdm_jax.diffusion.plms import PLMS
from vdm_jax.diffusion.samplers import DDIM, Corrector
from vdm_jax.diffusion.solvers import Euler
from vdm_jax.stage.sampler import Sampler
from vdm_jax.systems import latent_image
from vdm_jax.weights import fetch

GOLDEN = Path(__file__).parents[1] / "weights" / "golden" / "pipeline.safetensors"
PROMPT, NEGATIVE, STEPS, GUIDANCE = "a cat", "dull", 4, 7.5


def write_folder(folder):
    """The recorded pipeline's files."""
    with safetensors.safe_open(GOLDEN, framework="numpy") as file:
        files = json.loads(file.metadata()["files"])
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
    return vdm_jax.load(folder)


@pytest.fixture(scope="module")
def recorded():
    return safetensors.numpy.load_file(GOLDEN)


def in_order(latents):
    """Recorded latents, (1, c, h, w), as videos of one frame."""
    return rearrange(latents, "1 c h w -> 1 1 h w c")


@pytest.fixture
def sampler(model):
    return model.sampler(steps=STEPS, guidance=GUIDANCE, negative=NEGATIVE)


def test_latents_equal_the_original_step_by_step(model, sampler, recorded):
    stage = model.stage
    inputs = stage.encode([PROMPT], negatives=[NEGATIVE])
    levels = sampler.logsnrs()

    @jax.jit
    def step(params, z, state, logsnr_t, logsnr_s, inputs):
        cond = stage.begin(inputs, 1, jax.random.key(1), sampler.settings, model.frozen)
        denoiser, rule = sampler.denoiser_and_rule(params)

        def denoise(z, logsnr):
            return denoiser(z, jnp.full(1, logsnr), cond)

        return rule.step(jax.random.key(0), denoise, z, state, logsnr_t, logsnr_s)

    z, state = jnp.asarray(in_order(recorded["noise"])), ()
    for i, wanted in enumerate(recorded["latents"]):
        z, state = step(model.params, z, state, levels[i], levels[i + 1], inputs)
        assert np.abs(z - in_order(wanted)).max() < 1e-4 * np.abs(wanted).max()


def test_the_image_equals_the_original(model, recorded, monkeypatch):
    noise = in_order(recorded["noise"])
    monkeypatch.setattr(jax.random, "normal", lambda key, shape, *dtype: jnp.asarray(noise))
    image = model.sample(
        jax.random.key(0), PROMPT, steps=STEPS, guidance=GUIDANCE, negative=NEGATIVE
    )
    assert image.shape == (1, 1, 16, 16, 3)
    assert np.abs(image[:, 0] - np.round(255 * recorded["image"])).max() <= 1


def test_networks_in_the_hosts_memory_give_the_same_image(folder, model):
    other = vdm_jax.load(folder, offload=True)
    encoder = other.stage.text_encoder
    assert encoder is not model.stage.text_encoder
    changes = {"steps": 2, "guidance": GUIDANCE, "negative": NEGATIVE}
    images = [one.sample(jax.random.key(0), PROMPT, **changes) for one in (model, other)]
    np.testing.assert_array_equal(*images)
    for tree, kind in (
        (other.frozen, "pinned_host"),
        (encoder._ready.params, "pinned_host"),
        (other.params, "device"),
        (model.frozen, "device"),
    ):
        assert {leaf.sharding.memory_kind for leaf in jax.tree.leaves(tree)} == {kind}


def test_prompts_and_negatives_act(model):
    def sample(prompt, negative):
        changes = {"steps": STEPS, "guidance": GUIDANCE, "negative": negative}
        return model.sample(jax.random.key(0), prompt, **changes).astype(int)

    plain = sample(PROMPT, NEGATIVE)
    assert np.abs(plain - sample("a dog", NEGATIVE)).max() > 2
    assert np.abs(plain - sample(PROMPT, PROMPT)).max() > 2


def test_the_defaults_are_those_of_the_folder(model):
    sampler = model.sampler()
    assert isinstance(sampler, Sampler)
    assert (sampler.steps, sampler.guidance_scale, sampler.rule_name) == (50, 7.5, "ddim")
    timesteps = model.schedule.timestep(sampler.logsnrs())
    np.testing.assert_allclose(timesteps[np.array([0, 1, -2, -1])], [981, 961, 1, 0], atol=1e-3)
    assert model.stage.video_shape == (1, 16, 16, 3)
    assert model.stage.z_shape == (1, 8, 8, 4)


def test_flags_of_the_step_rule_hold_for_the_folders_scheduler(model):
    plain, noisy = model.sampler(), model.sampler(eta=1.0, corrector=0.1)
    assert plain.rule == DDIM() and noisy.rule == Corrector(rule=DDIM(eta=1.0), delta=0.1)
    assert noisy.grid == plain.grid
    with pytest.raises(ValueError, match="sampler 'ddim' has no field churn"):
        model.sampler(churn=1.0)


def test_flags_that_the_folders_scheduler_does_not_have_are_refused(tmp_path):
    folder = write_folder(tmp_path)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "EulerAncestralDiscreteScheduler"}))
    model = vdm_jax.load(folder)
    assert model.sampler().rule == DDIM(eta=1.0)  # which is how it adds noise
    with pytest.raises(ValueError, match="churn: the published scheduler of this model has no"):
        model.sampler(churn=1.0)
    path.write_text(json.dumps({"_class_name": "EulerDiscreteScheduler"}))
    model = vdm_jax.load(folder)
    assert model.sampler(churn=5.0, steps=10).rule == Euler(churn=5.0, steps=10)
    assert model.sampler(shared_noise=True).noise.shared


def test_stable_diffusions_own_scheduler_is_sampled_by_its_rule(tmp_path):
    folder = write_folder(tmp_path)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps({"_class_name": "PNDMScheduler", "skip_prk_steps": True}))
    model = vdm_jax.load(folder)
    assert model.sampler().rule == PLMS(prediction="eps")
    assert model.sampler().rule_name == model.config.sample.sampler == "plms"
    image = model.sample(jax.random.key(0), PROMPT, steps=3)
    assert image.shape == (1, 1, 16, 16, 3) and image.std() > 0


@pytest.mark.parametrize(
    "file,change,message",
    [
        ("model_index.json", {"_class_name": "FluxPipeline"}, "FluxPipeline.*StableDiffusion"),
        ("model_index.json", {"image_projection": []}, "image_projection: not understood"),
        ("unet/config.json", {"dual_cross_attention": True}, r"unet/config.json: dual_cross"),
        ("vae/config.json", {"_class_name": "VQModel"}, "VQModel.*AutoencoderKL"),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "thresholding = True"),
        ("scheduler/scheduler_config.json", {"clip_sample": True}, "clip_sample = true"),
        ("text_encoder/config.json", {"hidden_act": "relu"}, "hidden_act = 'relu'"),
    ],
)
def test_a_folder_that_is_not_understood_is_refused_by_name(tmp_path, file, change, message):
    folder = write_folder(tmp_path)
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        vdm_jax.load(folder)


def test_a_missing_part_is_named(tmp_path):
    folder = write_folder(tmp_path)
    (folder / "vae").rename(folder / "elsewhere")
    with pytest.raises(FileNotFoundError, match="vae: no such folder"):
        vdm_jax.load(folder)


def test_the_folder_is_written_back_bit_by_bit(folder, tmp_path, capsys):
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as ended:
        cli.main(["convert", "--to=diffusers", f"--model={folder}", f"--out={out}"])
    assert ended.value.code == 0
    assert "unet, scheduler, vae, text_encoder, tokenizer" in capsys.readouterr().out
    for path in folder.rglob("*.safetensors"):
        before = safetensors.numpy.load_file(path)
        after = safetensors.numpy.load_file(out / path.relative_to(folder))
        assert before.keys() == after.keys()
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])
    again, first = vdm_jax.load(out), vdm_jax.load(folder)
    assert again.stage.network == first.stage.network
    assert again.config.sample == first.config.sample
    with pytest.raises(SystemExit, match="2"):
        cli.main(["convert", "--to=diffusers", f"--model={folder}", f"--out={out}"])
    assert "is not empty" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main(["convert", "--to=diffusers", "--model=moving_shapes", f"--out={tmp_path / 'b'}"])
    assert ended.value.code != 0
    assert "system = 'vdm'" in capsys.readouterr().err


def test_training_may_have_other_noise_levels_than_sampling(model):
    config = model.config.copy_and_resolve_references()
    assert latent_image.build(config).process.training_schedule is None
    with config.unlocked():
        config.model.training = "cosine"
    process = latent_image.build(config).process
    levels = np.asarray(process.sample_logsnr(jax.random.key(0), 1000))
    ends = process.schedule(jnp.array([1.0, 0.0]))
    assert ends[0] <= levels.min() and levels.max() <= ends[1]
    assert 0.4 < np.mean(np.abs(levels) < 1.76) < 0.6
    with config.unlocked():
        config.model.training = "edm"
    with pytest.raises(ValueError, match="model.training = 'edm': allowed are timesteps, cosine"):
        latent_image.build(config)


def test_with_another_text_encoder_the_index_says_what_it_is(model, tmp_path):
    config = model.config.copy_and_resolve_references()
    with config.unlocked():
        config.text.update({"encoder": "minilm", "weights": "", "max_length": 9})
        config.model.unet.cross_attention_dim = 384
        config.data.update({"name": "scenes", "config": "64x64x16", "augment": ("mirror",)})
        config.sample.steps = 7
    params = jax.eval_shape(latent_image.build(config).init, jax.random.key(0))
    drawn = jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), params)
    parts = latent_image.write_published(tmp_path, config, drawn, "float16")
    assert parts == ["unet", "scheduler", "vae"]
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["text_encoder"] == index["tokenizer"] == [None, None]
    read = latent_image.read_published(tmp_path)
    assert read.text == config.text and read.sample.steps == 7
    assert read.data.augment == ("mirror",) and read.data.name == "scenes"
    assert "data_dir" not in index["_vdm_jax"]["data"]
    (encoder,) = (c.encoder for c in latent_image.build(read).conditions)
    assert (encoder.name, encoder.null_text, encoder.max_length) == ("minilm", "", 9)


@pytest.mark.parametrize("what", ["train", "sample"])
def test_a_program_is_lowered_without_weights(model, what):
    config = model.config.copy_and_resolve_references()
    config.train.batch_size = 2
    made = []  # a topology makes other devices each time, which no program may mix
    target = types.SimpleNamespace(devices=lambda: made.append(jax.devices()[:1]) or made[-1])
    lowered, figures = compiling.lower(config, target, what)
    assert len(made) == 1
    frozen = jax.tree.leaves(lowered.args_info[0][2 if what == "train" else 1])
    wanted = jax.tree.leaves(model.frozen)
    assert [leaf.shape for leaf in frozen] == [leaf.shape for leaf in wanted]
    assert figures["batch"] == (2 if what == "train" else 1)


def test_without_a_folder_the_autoencoder_is_stable_diffusions():
    config = latent_image.default_config()
    (network,) = latent_image.frozen_networks(config).values()
    shapes = jax.tree.leaves(network.abstract_params())
    assert sum(leaf.size for leaf in shapes) == 83_653_863
    with pytest.raises(ValueError, match="model.autoencoder = ''"):
        latent_image.read_frozen(config)
