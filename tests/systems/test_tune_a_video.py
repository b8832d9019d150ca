"""Tune-A-Video starts as its image model whose frames attend to others, trains what the paper
names, and keeps all else, bit by bit, outside of its files."""

import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from tests.systems import test_latent_image
from vdm_jax import cli, systems
from vdm_jax import config as config_lib
from vdm_jax.models.blocks.cross_frame import CrossFrame, attending
from vdm_jax.pipelines import model as pretrained
from vdm_jax.pipelines import tuning
from vdm_jax.systems import tune_a_video
from vdm_jax.training import optimizer, state
from vdm_jax.training.integrity import CheckpointError
from vdm_jax.weights import fetch, latent_unet

FRAMES, PROMPT = 3, "a cat"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("image")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        yield test_latent_image.write_folder(folder / "model")


@pytest.fixture(scope="module")
def clip():
    return np.random.default_rng(0).integers(0, 256, (FRAMES, 16, 16, 3), np.uint8)


def recipe(**train):
    config = tune_a_video.default_config()
    config.model.dtype = "float32"
    config.data.frame_stride = 2
    config.train.update({"steps": 2, "learning_rate": 1e-3, **train})
    config.checkpoint.every = 1
    return config


@pytest.fixture(scope="module")
def config(folder, clip):
    return tuning.configure(folder, recipe(), clip, PROMPT, fps=8.0)


@pytest.fixture(scope="module")
def tuner(config):
    return tuning.Tuner.of(config)


@pytest.fixture(scope="module")
def tuned(tuner, config, clip, tmp_path_factory):
    """The model after two updates, what it started from, and its file."""
    workdir = tmp_path_factory.mktemp("run")
    found, reason = tuner.tune(clip, workdir / "tuning")
    assert reason == "steps"
    file = pretrained.save_model(workdir / "tuned.safetensors", found.params, config)
    return found, tuner.start, file


def flat(params):
    return traverse_util.flatten_dict(jax.tree.map(np.array, params), sep="/")


def test_an_untuned_network_is_the_image_model_with_another_self_attention(config, folder, tuned):
    found, before, _ = tuned
    stage = found.stage
    image = pretrained.load(folder)
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(2, *stage.z_shape)), jnp.float32)
    logsnr = jnp.array([2.0, -3.0])
    cond = {"text_embeddings": jnp.asarray(rng.normal(size=(2, 77, 16)), jnp.float32)}
    network, params = stage.network, stage.network_params(before, found.frozen)
    run = jax.jit(lambda n, p: n.apply({"params": p}, z, logsnr, cond), static_argnums=0)
    others = attending(image.stage.network, CrossFrame(frames="first_and_previous"))
    wanted = np.asarray(run(others, image.params))
    scale = np.abs(wanted).max()
    assert np.abs(run(network, params) - wanted).max() < 1e-5 * scale
    # The tuned parameters act.
    tuned_params = stage.network_params(found.params, found.frozen)
    assert np.abs(run(network, tuned_params) - wanted).max() > 1e-4 * scale


def test_training_changes_queries_and_attention_over_frames_and_nothing_else(tuned, folder):
    found, before, file = tuned
    before, after = flat(before), flat(found.params)
    trained = {path for path in after if (after[path] != before[path]).any()}
    wanted = {
        path
        for path in after
        if re.search(r"attention_(self|text)/query/kernel|temporal_0/attention/", path)
    }
    # The maps before the zero map have no gradient at first, and one after the first update.
    assert trained == wanted
    assert {path.split("/")[-2] for path in after.keys() - wanted} == {"norm"}
    # Everything else lies in the base, which no update can reach.
    whole = flat(found.stage.network_params(found.params, found.frozen))
    image = flat(pretrained.load(folder).params)
    for path in image.keys() - wanted:
        np.testing.assert_array_equal(whole[path], image[path], err_msg=path)
    assert set(safetensors.numpy.load_file(file)) == set(after)


def test_the_optimiser_holds_what_is_trained_alone(config):
    stage, tx = systems.build(config), optimizer.make_optimizer(config.train)
    shapes = nn.meta.unbox(stage.abstract_params())
    moments = jax.eval_shape(tx.init, stage.trained(shapes))
    found = sorted(leaf.shape for leaf in jax.tree.leaves(moments) if leaf.ndim)
    trained = [leaf.shape for leaf in jax.tree.leaves(stage.trained(shapes))]
    assert found == sorted(2 * trained)
    paths = [name for name, _ in pretrained.named_leaves(stage.trained(shapes))]
    assert len(paths) == sum(
        len(list(re.finditer(r"query/kernel|temporal_0/attention/\w+/(kernel|bias)", path)))
        for path in paths
    )


def test_a_run_goes_on_and_another_clip_is_refused(tuner, config, clip, tuned, tmp_path):
    found, _, _ = tuned
    first = config.copy_and_resolve_references().unlock()
    first.train.steps = 1
    tuner.tune(clip, tmp_path, config=first.lock())
    whole, _ = tuner.tune(clip, tmp_path)
    jax.tree.map(np.testing.assert_array_equal, whole.params, found.params)
    other = config.copy_and_resolve_references().unlock()
    other.train.tuning.clip = tuning.digest(clip[::-1])
    with pytest.raises(CheckpointError, match=r"train\.tuning\.clip"):
        tuner.tune(clip[::-1], tmp_path, config=other.lock())


def test_a_tuned_model_is_loaded_with_its_base(tuned, folder, clip):
    found, _, file = tuned
    loaded = tuning.load(file)
    assert loaded.config.train.tuning.prompt == PROMPT and loaded.fps == 4.0
    assert loaded.stage.video_shape == clip.shape
    jax.tree.map(np.testing.assert_array_equal, loaded.params, found.params)
    with pytest.raises(ValueError, match="is no tuned model"):
        tuning.load(folder)


def test_the_clip_is_inverted_and_edited(tuned, clip):
    found, _, _ = tuned
    editor = tuning.Editor.of(found, steps=2, guidance=3.0)
    assert editor.guided.guidance_scale == 3.0 and editor.inverter.sampler.guidance_scale == 1.0
    assert editor.invert(found.params, clip).shape == (1, FRAMES, 8, 8, 4)
    videos = editor.edit(found.params, clip, ["a dog", "a bird"])
    assert videos.shape == (2, *clip.shape)
    assert (videos[0] != videos[1]).any()
    other = editor.edit(found.params, clip[::-1], ["a dog"])
    assert (other[0] != videos[0]).any()


def test_a_pipeline_is_written_as_published_and_loaded(config, tuned, folder, tmp_path, capsys):
    found, _, _ = tuned
    pooled = config.copy_and_resolve_references().unlock()
    pooled.temporal.norm_over_frames = True
    file = pretrained.save_model(tmp_path / "pooled.safetensors", found.params, pooled.lock())
    out = tmp_path / "pipeline"
    command = ["convert", "--to=diffusers", f"--model={file}", f"--out={out}"]
    with pytest.raises(SystemExit) as ended:
        cli.main(command)
    assert not ended.value.code
    loaded = pretrained.load(out)
    assert loaded.config.system == tune_a_video.NAME and loaded.config.temporal.norm_over_frames
    assert loaded.stage.train_only == tune_a_video.TRAINED
    whole = found.stage.network_params(found.params, found.frozen)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, whole)
    assert loaded.stage.video_shape == (24, 16, 16, 3)
    with pytest.raises(ValueError, match="norm_over_frames = False: Tune-A-Video's own class"):
        systems.write_published(tmp_path / "other", config, whole, "float32")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"source": "moving_shapes"}, ValueError, r"'moving_shapes' is no whole latent image"),
        ({"source": "nowhere"}, FileNotFoundError, "'nowhere' is no directory"),
        ({"prompt": "cat " * 100}, ValueError, "77"),
        ({"clip": np.zeros((2, 18, 17, 3), np.uint8)}, ValueError, "18 x 17 pixels.*multiples"),
    ],
)
def test_what_cannot_be_tuned_is_refused(folder, clip, change, error, message):
    given = {"source": folder, "clip": clip, "prompt": PROMPT, **change}
    with pytest.raises(error, match=message):
        tuning.configure(given["source"], recipe(), given["clip"], given["prompt"])


def test_a_run_without_a_base_is_refused():
    config = config_lib.load_config("tune_a_video/paper")
    with pytest.raises(ValueError, match=r"train.tuning.base = '': must name"):
        pretrained.with_base(config)


def test_the_paper_tunes_some_of_stable_diffusions_parameters():
    """Of the 859,520,964 of Stable Diffusion 1 the two query maps of each transformer block are
    trained; the attention over frames is new: four maps and a bias, and a normalisation that
    stays. The blocks have 320, 640 and 1280 channels."""
    config = config_lib.load_config("tune_a_video/paper")
    stage = systems.build(config)
    shapes = nn.meta.unbox(stage.abstract_params())
    blocks = {320: 5, 640: 5, 1280: 6}
    own = sum(n * (6 * c**2 + 3 * c) for c, n in blocks.items())
    assert state.count_parameters(shapes) == own
    trained = state.count_parameters(stage.trained(shapes))
    assert trained == own - sum(n * 2 * c for c, n in blocks.items())
    base = systems.build_base(config).network
    assert base.slots == latent_unet.image_network(base).slots  # the image model's own
    assert stage.video_shape == (24, 512, 512, 3)
