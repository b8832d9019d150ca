"""Gen-1's phases of training hand over to one another, and its conditions and guidance act."""

import dataclasses
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from ml_collections import ConfigDict

from tests.systems import test_latent_image
from tests.test_wiring import fingerprint
from tests.weights import golden_files
from tests.weights.test_depth_anything import write_folder as write_estimator
from vdm_jax import systems
from vdm_jax.models.vision.image_text import ImageTextConfig, ImageTextPair
from vdm_jax.parallel import sharding
from vdm_jax.pipelines import initial as initial_lib
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage.conditions.structure import Structure
from vdm_jax.stage.depth import DEPTH_ESTIMATOR
from vdm_jax.stage.sampler import Sampler
from vdm_jax.systems import gen1
from vdm_jax.training import optimizer, state, step
from vdm_jax.weights import fetch, latent_unet
from vdm_jax.weights import image_text as pair_weights

FRAMES, SIDE, WIDTH = 2, 16, 6  # frames and height of clips, features of an embedding
PAIR = ImageTextPair(
    ImageTextConfig(image_size=8, widths=(4, 8), norm_groups=2, text_width=8, projection=WIDTH)
)


def flat(params):
    return traverse_util.flatten_dict(params, sep="/")


def write_pair(folder):
    rng = np.random.default_rng(0)
    shapes = nn.meta.unbox(pair_weights.abstract_params(PAIR))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)
    pair_weights.write_folder(folder, PAIR, params)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A published text-to-image pipeline, which phase 1 starts from, and an image-text pair."""
    folder = tmp_path_factory.mktemp("gen1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        yield test_latent_image.write_folder(folder / "image"), write_pair(folder / "pair")


def make_config(folders, frames=FRAMES, **model):
    """A phase; without fields of `model` the last one."""
    image, pair = folders
    config = gen1.default_config().unlock()
    unet = latent_unet.config(latent_unet.read_config(image / "unet"))
    config.model.unet = ConfigDict(unet)
    config.model.update({"temporal": frames > 1, **model})
    config.model.unet.in_channels = 12 if config.model.structure else 4
    config.model.update({"content_tokens": 2, "dtype": "float32", "image_encoder": str(pair)})
    config.model.autoencoder = str(image / "vae")
    config.data.update({"num_frames": frames, "image_size": SIDE, "image_width": SIDE})
    config.data.image_frames = 1
    config.temporal.max_frames = FRAMES
    config.model.train_only = "temporal|attention_text|^condition/embedding_|^input_conv/"
    config.train.update({"batch_size": 2, "warmup_steps": 0, "learning_rate": 1e-3})
    return config


PHASES = {
    "content": {"frames": 1, "structure": False},
    "video": {"structure": False},
    "structure": {"max_level": 0},
    "levels": {},
}


@pytest.fixture(scope="module")
def phases(folders, tmp_path_factory):
    """The configuration, the stage and the parameters that training starts from: of the first
    phase, and of the last one if it starts from the first."""
    found, source = {}, folders[0]
    for name in ("content", "levels"):
        config = make_config(folders, **PHASES[name])
        stage = systems.build(config)
        plan = sharding.make_plan(stage, {"data": 1}, jax.devices()[:1])
        params = initial_lib.params(source, stage, plan)
        source = tmp_path_factory.mktemp("phases") / f"{name}.safetensors"
        pretrained.save_model(source, params, config)
        found[name] = (config, stage, params)
    return found


def test_each_phase_has_the_parameters_of_the_one_before(folders):
    """What it lacks is new, and what has more inputs may have them."""
    before = None
    for name, fields in PHASES.items():
        stage = systems.build(make_config(folders, **fields))
        shapes = {k: v.shape for k, v in flat(nn.meta.unbox(stage.abstract_params())).items()}
        added = set() if before is None else shapes.keys() - before.keys()
        assert bool(added) == (name == "video")
        assert all(re.search(stage.new, path) for path in added)
        wider = {path for path in before or () if before[path] != shapes[path]}
        assert wider == ({"input_conv/kernel"} if name == "structure" else set())
        assert all(re.search(stage.wider, path) for path in wider)
        before = shapes


def make_cond(rng, batch):
    return {
        "image_embedding": jnp.asarray(rng.normal(size=(batch, 1, WIDTH)), jnp.float32),
        "structure": jnp.asarray(rng.normal(size=(batch, FRAMES, 8, 8, 4)), jnp.float32),
        "structure_level": jnp.arange(batch, dtype=jnp.float32),
    }


def test_the_first_phase_has_the_image_models_parameters(phases, folders):
    _, _, params = phases["content"]
    held = flat(pretrained.load(folders[0]).params)
    new = flat(params).keys() - held.keys()
    assert new and all(name.startswith("condition/embedding_") for name in new)
    for path, leaf in held.items():
        np.testing.assert_array_equal(flat(params)[path], leaf, err_msg=path)


def test_a_clip_of_the_last_phase_starts_as_the_first_phases_images(phases):
    (_, image, image_params), (_, stage, params) = phases["content"], phases["levels"]
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.normal(size=(2, *stage.z_shape)), jnp.float32)
    logsnr, cond = jnp.array([2.0, -4.0]), make_cond(rng, 2)
    found = jax.jit(stage.raw_output)(params, z, logsnr, cond)
    content = {"image_embedding": cond["image_embedding"]}
    one = jax.jit(image.raw_output)
    frames = [one(image_params, z[:, i : i + 1], logsnr, content) for i in range(FRAMES)]
    wanted = np.concatenate(frames, axis=1)
    assert np.abs(found - wanted).max() < 1e-5 * np.abs(wanted).max()
    other = one(image_params, z[:, :1], logsnr, {"image_embedding": -cond["image_embedding"]})
    assert np.abs(other - frames[0]).max() > 1e-3  # the content matters
    conv = params["input_conv"]["kernel"]
    assert conv.shape[2] == 12 and not conv[:, :, 4:].any()
    new = {name for name in flat(params) if "temporal" in name}
    assert new == flat(params).keys() - flat(image_params).keys()
    assert any(name.endswith("encodings") for name in new)


def test_an_update_learns_from_structure_content_and_frames(phases):
    config, stage, params = phases["levels"]
    plan = sharding.make_plan(stage, {"data": 1}, jax.devices()[:1])
    frozen, tx = systems.read_frozen(config), optimizer.make_optimizer(config.train)
    before = state.from_params(stage, params, tx, plan)
    held = flat(jax.tree.map(np.array, before.params))
    update = step.make_train_step(stage, tx, config, plan, frozen)
    batch = stage.abstract_batch(2, 1)
    assert batch["depth"].shape == (2, FRAMES, SIDE, SIDE, 1)
    assert batch["image_depth"].shape == (2, 1, SIDE, SIDE, 1)
    rng = np.random.default_rng(0)
    batch = {name: rng.integers(0, 256, leaf.shape, np.uint8) for name, leaf in batch.items()}
    after, metrics = update(before, batch)
    assert np.isfinite(metrics["loss"])
    after = flat(jax.tree.map(np.array, after.params))
    changed = {name for name, leaf in after.items() if np.abs(leaf - held[name]).max() > 0}
    assert changed <= {
        name for name, leaf in flat(stage.trained(params)).items() if leaf is not None
    }
    expected = {
        "input_conv/kernel",
        "condition/embedding_tokens/kernel",
        "down_0_attention_0/block_0/attention_text/value/kernel",
        "down_0_attention_0/temporal_0/layer/attention/out/kernel",
        "down_0_block_0/conv_in_temporal/layer/conv/taps/kernel",
        "output_conv_temporal/layer/conv/taps/kernel",
    }
    assert expected <= changed
    conv = np.abs(after["input_conv/kernel"]).max(axis=(0, 1, 3))
    assert conv.shape == (12,) and conv.min() > 0  # the depth's latents and t_s are learned from


class Light(nn.Module):
    """Reads the conditions, and is traced at once."""

    multiple = 1

    @nn.compact
    def __call__(self, z, logsnr, cond, *, num_images=0, train=False):
        content = cond["image_embedding"].mean(axis=(1, 2)) + cond["structure_level"]
        return z + cond["structure"] * content[:, None, None, None, None]


def test_settings_of_sampling_reach_the_program(phases):
    config, stage, _ = phases["levels"]
    stage = dataclasses.replace(stage, network=Light())
    sample = {"sampler": "ddim", "steps": 2, "threshold": "none", "guidance": 2.0}

    frozen = jax.eval_shape(lambda: systems_frozen(config))
    number = jax.ShapeDtypeStruct((1,), jnp.uint32)

    def program(stage=stage, **changes):
        sampler = Sampler.from_config(stage, sample, **changes)
        inputs = (jax.random.key(0), number, stage.abstract_inputs(1), None, None)
        return fingerprint(sampler.compiled.__wrapped__, {}, frozen, *inputs)

    programs = [program(), program(structure=3.0), program(temporal=1.3), program(temporal=1.4)]
    assert all(a != b for i, a in enumerate(programs) for b in programs[:i])
    with pytest.raises(ValueError, match="structure = 9: must be a whole number from 0 to 7"):
        program(structure=9.0)
    with pytest.raises(ValueError, match="structure = 2: must be a whole number from 0 to 0"):
        fixed = dataclasses.replace(stage.find(Structure), most=0)
        program(dataclasses.replace(stage, conditions=(fixed, stage.conditions[1])), structure=2.0)


def systems_frozen(config):
    return {name: part.params for name, part in systems.read_frozen(config).items()}


def test_an_estimator_takes_the_place_of_the_datas_depth(folders, tmp_path, monkeypatch):
    folder = write_estimator(tmp_path / "depth", golden_files.read("depth_anything_relative"))
    config = make_config(folders, depth=str(folder))
    stage = systems.build(config)
    batch = stage.abstract_batch(2, 1)
    assert set(batch) == {"video", "images"}
    frozen = jax.eval_shape(lambda: systems_frozen(config))
    assert set(frozen) == {"autoencoder", "image_encoder", DEPTH_ESTIMATOR}
    for name, part in gen1.frozen_networks(config).items():
        named = nn.meta.unbox(part.abstract_params())
        jax.tree.map(lambda x, y: None if x.shape == y.shape else 1 / 0, frozen[name], named)
    prepare = stage.find(Structure).estimator.prepare
    monkeypatch.setattr(type(prepare), "resized", lambda *_: (8, 8))  # multiples of its patches
    light = dataclasses.replace(stage, network=Light())
    loss, _ = jax.eval_shape(light.loss, {}, batch, jax.random.key(0), frozen)
    assert loss.shape == ()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"content_tokens": 0}, "model.unet.cross_attention_dim = 16: embeddings of .* have 6"),
        ({"max_level": 9}, "most = 9: must be from 0 to 7"),
        ({"structure": False}, "model.unet.in_channels = 12: must be 4 with model.structure = Fal"),
        ({"dtype": "float64"}, "model.dtype = 'float64'"),
        ({"autoencoder": "nowhere"}, "nowhere"),
        ({"image_encoder": "nowhere"}, "nowhere"),
        ({"depth": "nowhere"}, "nowhere"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(folders, fields, message):
    config = make_config(folders)
    config.model.update(fields)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        systems.build(config)


def test_sampling_without_structure_says_what_to_do(phases):
    with pytest.raises(ValueError, match="use vdm edit restructure --input=VIDEO"):
        phases["levels"][1].encode(
            [""], inputs={"image_embedding": np.zeros((1, 8, 8, 3), np.uint8)}
        )
