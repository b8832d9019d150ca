"""Make-A-Video: only the prior takes texts, videos are learned without them, and all stages sample
as one model."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import vdm_jax
from tests import cascades
from tests.systems import test_latent_image
from vdm_jax import config as config_lib
from vdm_jax import systems
from vdm_jax.models.vision.image_text import ImageTextConfig, ImageTextPair
from vdm_jax.parallel import sharding
from vdm_jax.pipelines import cascade
from vdm_jax.pipelines import initial as initial_lib
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage import sampler_fields
from vdm_jax.stage.conditions.prompt import Prompt
from vdm_jax.systems import make_a_video
from vdm_jax.training import optimizer, state, step
from vdm_jax.weights import fetch
from vdm_jax.weights import image_text as pair_weights

GIVEN, SKIP, SIDE, WIDTH = 2, 3, 16, 6
FRAMES = (GIVEN - 1) * SKIP + 1


def shapes(side):
    """By stage, (f, h, w) of what it makes; a prior's images have the (h, w)."""
    return {
        "prior": (1, side, side),
        "decoder_image": (1, side, side),
        "decoder": (GIVEN, side, side),
        "interpolation": (FRAMES, side, side),
        "sr_l": (FRAMES, 2 * side, 2 * side),
        "sr_h": (FRAMES, 4 * side, 4 * side),
    }


def drawn(shapes, seed):
    """Parameters with no zeros, that keep features of order 1."""
    rng = np.random.default_rng(seed)

    def draw(leaf):
        fan_in = leaf.size // leaf.shape[-1] if leaf.ndim > 1 else 1
        return (rng.normal(size=leaf.shape) / np.sqrt(fan_in)).astype(np.float32)

    return jax.tree.map(draw, shapes)


def write_parts(folder, side):
    """A published image model, in "image", and an image-text pair, in "pair"; both random."""
    test_latent_image.write_folder(folder / "image")
    sizes = ImageTextConfig(
        image_size=side, widths=(4, 8), norm_groups=2, text_width=16, projection=WIDTH
    )
    pair = ImageTextPair(sizes)
    params = drawn(nn.meta.unbox(pair_weights.abstract_params(pair)), 0)
    pair_weights.write_folder(folder / "pair", pair, params)


def make_configs(folder, side, refiner=cascades.NETWORK):
    """Of each stage, as small as can be, with the parts of `write_parts`; refiner: the network of
    super-resolution, fields of `config.model`."""
    image = pretrained.read_config(folder / "image")
    found = {}
    for name, shape in shapes(side).items():
        part = {"sr_l": "super_resolution", "sr_h": "super_resolution"}.get(name)
        part = part or name.removesuffix("_image")
        config = make_a_video.default_config(part, shape).unlock()
        config.model.dtype = "float32"
        config.train.update({"batch_size": 2, "warmup_steps": 0, "learning_rate": 1e-3})
        config.sample.steps = 2
        if part == "super_resolution":
            config.model.update(refiner)
            config.stage.low_res = (FRAMES, shape[1] // 2, shape[2] // 2)
            config.sample.shared_noise = name == "sr_h"
        else:
            config.model.image_encoder = str(folder / "pair")
        if part == "prior":
            config.model.prior.update(width=16, hidden=16, num_layers=1, heads=2)
            config.text.update({"encoder": "clip", "weights": str(folder / "image")})
        if part in ("decoder", "interpolation"):
            config.model.unet, config.model.scheduler = image.model.unet, image.model.scheduler
            config.model.update({"autoencoder": image.model.autoencoder, "space": "latents"})
            config.model.temporal = name != "decoder_image"
            config.stage.data_fps = 8.0
        if name == "decoder":
            config.model.train_only = make_a_video.TEMPORAL
            config.stage.frame_strides, config.data.num_frames = (SKIP, 1), FRAMES
        if name == "interpolation":
            config.interpolation.update({"given": GIVEN, "skip": SKIP})
        found[name] = config.lock()
    return found


def write_cascade(folder, configs):
    """All stages with random parameters, saved as one cascade, and loaded."""
    for seed, name in enumerate(make_a_video.STAGES):
        stage = systems.build(configs[name])
        params = drawn(nn.meta.unbox(stage.abstract_params()), seed)
        pretrained.save_model(folder / name, params, configs[name])
    cascade.save(folder, cascade.cascade_config(make_a_video.STAGES))
    return vdm_jax.load(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("make_a_video")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        write_parts(folder, SIDE)
        yield folder


@pytest.fixture(scope="module")
def configs(folder):
    return make_configs(folder, SIDE)


@pytest.fixture(scope="module")
def stages(configs):
    return {name: systems.build(config) for name, config in configs.items()}


@pytest.fixture(scope="module")
def model(configs, folder):
    return write_cascade(folder / "cascade", configs)


def flat(params):
    return traverse_util.flatten_dict(jax.tree.map(np.array, params), sep="/")


def test_only_the_prior_is_trained_on_texts(stages):
    for name, stage in stages.items():
        texts = [entry for entry in stage.abstract_batch(2) if "text" in entry]
        assert bool(texts) == (name == "prior"), name
        assert any(isinstance(one, Prompt) for one in stage.conditions) == (name == "prior"), name
        counted = sum(level.parameters for level in stage.cost())
        params = nn.meta.unbox(stage.abstract_params())
        assert counted == sum(leaf.size for leaf in jax.tree.leaves(params)), name
    frames = {name: stage.abstract_batch(2)["video"].shape[1] for name, stage in stages.items()}
    assert frames["prior"] == frames["decoder_image"] == 1 and frames["decoder"] == GIVEN


def test_training_on_videos_leaves_the_image_model_as_it_was(configs, stages, folder):
    config, stage = configs["decoder"], stages["decoder"]
    plan = sharding.make_plan(stage, {"data": 1}, jax.devices()[:1])
    params = initial_lib.params(folder / "image", stage, plan)
    image = flat(pretrained.load(folder / "image").params)
    tx, frozen = optimizer.make_optimizer(config.train), systems.read_frozen(config)
    current = state.from_params(stage, params, tx, plan)
    before = flat(current.params)
    for path, leaf in image.items():
        np.testing.assert_array_equal(before[path], leaf, err_msg=path)
    rng = np.random.default_rng(0)
    wanted = stage.abstract_batch(2)
    batch = {"video": rng.integers(0, 256, wanted["video"].shape, np.uint8)}
    batch["fps"] = np.array([8.0, 8.0 / SKIP], np.float32)
    assert batch.keys() == wanted.keys()
    update = step.make_train_step(stage, tx, config, plan, frozen)
    current, metrics = update(current, batch)
    assert np.isfinite(metrics["loss"])
    after, ema = flat(current.params), flat(current.ema)
    changed = {path for path, leaf in before.items() if np.any(after[path] != leaf)}
    for path in before.keys() - changed:
        np.testing.assert_array_equal(ema[path], before[path], err_msg=path)
    assert all("_temporal/" in path or path.startswith("condition/fps_") for path in changed)
    for path in (
        "down_0_block_0/conv_out_temporal/conv/taps/kernel",
        "middle_attention_temporal/attention/out/kernel",
        "condition/fps_out/kernel",
    ):
        assert path in changed
    moments = sorted(leaf.shape for leaf in jax.tree.leaves(current.opt_state) if leaf.ndim)
    trained = jax.tree.leaves(stage.trained(params))
    assert moments == sorted(2 * [leaf.shape for leaf in trained])


def test_all_stages_sample_as_one_model(model, tmp_path):
    prompts, key = ["a cat", "dull"], jax.random.key(0)
    outputs = {one.name: one for one in model.stream(key, prompts, tmp_path)}
    assert list(outputs) == list(make_a_video.STAGES)
    embeddings = outputs["prior"].videos
    assert embeddings.shape == (2, 1, 1, 1, WIDTH) and embeddings.dtype == np.float32
    for name in make_a_video.STAGES[1:]:
        videos = outputs[name].videos
        assert videos.shape == (2, *shapes(SIDE)[name], 3) and videos.dtype == np.uint8
    # The text reaches every stage, each by the samples of the one before, and nothing else does.
    for one in model.stream(key, ["dull", "dull"], tmp_path / "other"):
        np.testing.assert_array_equal(one.videos[1], outputs[one.name].videos[1], one.name)
        assert np.any(one.videos[0] != outputs[one.name].videos[0]), one.name
    np.testing.assert_array_equal(model.sample(key, prompts=prompts), outputs["sr_h"].videos)


def test_a_cascade_in_another_order_is_refused(model, tmp_path):
    def refused(*names):
        steps = tuple(model.steps[make_a_video.STAGES.index(name)] for name in names)
        wrong = dataclasses.replace(model, steps=steps)
        with pytest.raises(ValueError) as error:
            next(wrong.stream(jax.random.key(0), ["a cat"], tmp_path))
        return str(error.value)

    assert "decoder refines an embedding of 6 features" in refused("decoder", "prior")
    assert "interpolation refines (2, 16, 16)" in refused("prior", "interpolation")
    assert "sr_h refines (4, 32, 32)" in refused("prior", "decoder", "interpolation", "sr_h")


def test_inputs_that_do_not_fit_are_named(stages, configs):
    decoder, between = stages["decoder"], stages["interpolation"]
    with pytest.raises(ValueError, match="none was given; sample the cascade"):
        decoder.encode([""])
    with pytest.raises(ValueError, match=r"image_embedding: float64\[1, 6\].*float32 \[1, 1, 1, 1"):
        decoder.encode([""], inputs={"image_embedding": np.zeros((1, 6))})
    with pytest.raises(ValueError, match="prompts were given, but this model was trained without"):
        decoder.encode(["a cat"], inputs={"image_embedding": np.zeros((1, 1, 1, 1, 6), np.float32)})
    with pytest.raises(ValueError, match=r"masked_video: uint8\[1, 3, .*key frames uint8 \[1, 2"):
        wrong = np.zeros((1, 3, SIDE, SIDE, 3), np.uint8)
        between.encode([""], inputs={"masked_video": wrong})
    for name, field, value, message in (
        ("prior", "text.encoder", "none", "text.encoder = 'none': a prior takes"),
        ("prior", "model.dtype", "int8", "model.dtype = 'int8'"),
        ("prior", "data.num_frames", 2, "data.num_frames = 2"),
        ("decoder", "model.space", "sound", "model.space = 'sound': allowed are latents, pixels"),
        ("decoder", "condition.frame", "last", "frame = 'last': allowed are first, middle, random"),
        ("interpolation", "model.temporal", False, "model.temporal = False"),
        ("interpolation", "interpolation.skip", 4, "take 5 frames, and clips have 4"),
    ):
        config = configs[name].copy_and_resolve_references().unlock()
        section, leaf = field.split(".")
        config[section][leaf] = value
        with pytest.raises(ValueError, match=message):
            systems.build(config)
    config = configs["prior"].copy_and_resolve_references().unlock()
    config.part = "sound"
    with pytest.raises(ValueError, match="part = 'sound': allowed are prior, decoder"):
        systems.build(config)
    with pytest.raises(ValueError, match="part = 'sound'"):
        make_a_video.default_config("sound")


def test_frames_of_sr_h_begin_with_the_same_noise(configs):
    noise = {
        name: sampler_fields.read(configs[name].sample, {})["noise"] for name in ("sr_l", "sr_h")
    }
    drawn_noise = noise["sr_h"].draw(jax.random.key(0), (2, FRAMES, 4, 4, 3))
    assert np.all(drawn_noise == drawn_noise[:, :1]) and np.any(drawn_noise[0] != drawn_noise[1])
    other = noise["sr_l"].draw(jax.random.key(0), (2, FRAMES, 4, 4, 3))
    assert np.all(np.any(other[:, 1:] != other[:, :1], axis=(2, 3, 4)))


@pytest.mark.parametrize("name", ["prior", "interpolation"])
def test_configurations_of_the_paper_can_be_compiled(name):
    """The training update's loss, by shapes, with the frozen networks that `vdm compile` places."""
    config = config_lib.load_config(f"make_a_video/paper/{name}")
    stage, devices = systems.build(config), jax.devices()[:1]
    frozen = systems.abstract_frozen(config, {"data": 1}, devices)
    fixed = {name: part.params for name, part in frozen.items()}
    assert list(fixed) == ["image_encoder"]
    params = nn.meta.unbox(stage.abstract_params())
    loss, _ = jax.eval_shape(stage.loss, params, stage.abstract_batch(2), jax.random.key(0), fixed)
    assert loss.shape == () and loss.dtype == jnp.float32
