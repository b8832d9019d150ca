"""Sampling a stage, and models as files."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors

from vdm_jax import config as config_lib
from vdm_jax import systems
from vdm_jax.diffusion import samplers, solvers
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage import sampler as sampling
from vdm_jax.stage import sampler_fields
from vdm_jax.systems import vdm
from vdm_jax.training import checkpoints, loop

PROMPTS = ["red left", "green right", "red right", "green left", "red left"]


@pytest.fixture(scope="module")
def params(stage):
    return stage.init(jax.random.key(0))


@pytest.fixture(scope="module")
def samples(stage, params):
    """Five samples in one batch, with noise in every step."""
    sampler = sampling.Sampler.from_config(stage, {}, steps=3, guidance=2.0, eta=1.0, batch_size=8)
    return np.concatenate(list(sampler.stream(params, jax.random.key(7), PROMPTS)))


def test_samples_do_not_depend_on_the_batch(stage, params, samples):
    sampler = sampling.Sampler.from_config(stage, {}, steps=3, guidance=2.0, eta=1.0, batch_size=2)
    batches = list(sampler.stream(params, jax.random.key(7), PROMPTS))
    assert [len(batch) for batch in batches] == [2, 2, 1]  # the last one padded, and cut
    again = np.concatenate(batches)
    assert again.dtype == np.uint8 and again.shape == (5, 3, 4, 4, 3)
    # Another batch is another compilation: equal to rounding, which can be one level of 255.
    assert np.abs(again.astype(int) - samples).max() <= 1
    assert np.mean(again != samples) < 0.01


def test_samples_differ_by_place_prompt_and_key(stage, params, samples):
    assert not np.array_equal(samples[0], samples[4])  # the same prompt in another place
    sampler = sampling.Sampler.from_config(stage, {}, steps=3, guidance=2.0, eta=1.0, batch_size=8)
    other = ["green left", *PROMPTS[1:]]
    changed = np.concatenate(list(sampler.stream(params, jax.random.key(7), other)))
    assert not np.array_equal(changed[0], samples[0])
    np.testing.assert_array_equal(changed[1:], samples[1:])
    moved = np.concatenate(list(sampler.stream(params, jax.random.key(8), PROMPTS)))
    assert np.mean(moved != samples) > 0.5


def test_the_callback_sees_every_step_of_every_batch(stage, params):
    seen = []
    sampler = sampling.Sampler.from_config(stage, {}, steps=3, batch_size=2, num_frames=5)
    stream = sampler.stream(
        params, jax.random.key(0), PROMPTS[:4], callback=lambda step, n: seen.append((step, n))
    )
    assert np.concatenate(list(stream)).shape == (4, 5, 4, 4, 3)
    jax.effects_barrier()
    assert sorted(seen) == sorted([(1, 3), (2, 3), (3, 3)] * 2)


def test_previews_show_a_batch_as_it_becomes(stage, params):
    seen = []
    sampler = sampling.Sampler.from_config(stage, {}, steps=16, batch_size=2)
    stream = sampler.stream(
        params, jax.random.key(0), PROMPTS[:2], preview=lambda *of: seen.append(of)
    )
    videos = np.concatenate(list(stream))
    jax.effects_barrier()
    seen.sort(key=lambda of: of[0])
    assert [of[:2] for of in seen] == [(step, 16) for step in range(2, 17, 2)]
    assert all(type(shown) is np.ndarray and shown.shape == videos.shape for _, _, shown in seen)
    np.testing.assert_array_equal(seen[-1][2], videos)  # the last step returns x̂
    assert (seen[0][2] != videos).any()
    plain = sampling.Sampler.from_config(stage, {}, steps=16, batch_size=2)
    np.testing.assert_array_equal(
        videos, np.concatenate(list(plain.stream(params, jax.random.key(0), PROMPTS[:2])))
    )


def test_samples_that_are_not_finite_are_refused(stage, params):
    bad = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
    sampler = sampling.Sampler.from_config(stage, {}, steps=2)
    with pytest.raises(FloatingPointError, match=r"samples 0\.\.1 are not finite"):
        list(sampler.stream(bad, jax.random.key(0), PROMPTS[:2]))


def test_settings_are_checked(stage, make_config):
    with pytest.raises(ValueError, match="threshold = 'hard': must be one of none, static"):
        sampling.Sampler.from_config(stage, {}, threshold="hard")
    with pytest.raises(ValueError, match="steps = 0"):
        sampling.Sampler.from_config(stage, {}, steps=0)
    with pytest.raises(ValueError, match="rk4"):
        sampling.Sampler.from_config(stage, {}, sampler="rk4")
    with pytest.raises(ValueError, match="grid='cosine' is unknown"):
        sampling.Sampler.from_config(stage, {}, grid="cosine")
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        sampling.Sampler.from_config(stage, {}, grid="karras", sigma_min=9.0, sigma_max=1.0)
    with pytest.raises(ValueError, match="Heun: churn"):
        sampling.Sampler.from_config(stage, {}, sampler="heun", churn=-1.0)
    with pytest.raises(ValueError, match=r"Corrector: delta=-0\.1"):
        sampling.Sampler.from_config(stage, {}, corrector=-0.1)
    with pytest.raises(ValueError, match="'distilled' takes no corrector"):
        sampling.Sampler.from_config(stage, {}, sampler="distilled", corrector=0.1)
    sampler = sampling.Sampler.from_config(stage, make_config().sample, steps=None, guidance=3.0)
    assert (sampler.steps, sampler.guidance_scale, sampler.rule_name) == (2, 3.0, "ddim")


def test_a_configuration_chooses_rule_and_grid(stage):
    old = {"sampler": "ddim", "steps": 4, "guidance": 2.0}
    sampler = sampling.Sampler.from_config(stage, old)
    schedule = stage.process.schedule
    np.testing.assert_array_equal(sampler.logsnrs(), samplers.logsnr_grid(schedule, 4))
    assert sampler.rule == samplers.DDIM()

    new = {"sampler": "heun", "grid": "karras", "steps": 4, "rho": 5.0, "churn": 2.0}
    sampler = sampling.Sampler.from_config(stage, new, corrector=0.1)
    assert sampler.rule == samplers.Corrector(rule=solvers.Heun(churn=2.0, steps=4), delta=0.1)
    grid = samplers.logsnr_grid(schedule, 4, spacing="karras", rho=5.0)
    np.testing.assert_array_equal(sampler.logsnrs(), grid)
    # Another rule and grid leave out the fields of those that the configuration chose.
    sampler = sampling.Sampler.from_config(stage, new, sampler="ddim", grid="-8,-2,2,inf")
    assert sampler.rule == samplers.DDIM() and sampler.steps == 3
    np.testing.assert_array_equal(sampler.logsnrs(), [-8.0, -2.0, 2.0, np.inf])


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"sampler": "ancestral", "eta": 0.5}, "sampler 'ancestral' has no field eta"),
        ({"sampler": "ddim", "gamma": 0.5}, "sampler 'ddim' has no field gamma"),
        ({"grid": "time", "rho": 5.0}, "grid 'time' has no field rho"),
        ({"tile_overlap": 4}, "tile_overlap = 4 has no effect with tile = 0"),
        ({"method": "projection", "weight": 1.0}, "weight=1.0 has no effect"),
        ({"augmentation": 3.0}, "augmentation = 3.0: this model has no such setting"),
        ({"method": "trained"}, "not trained with masked videos"),
        ({"smoothness": 1}, "sampler has no field smoothness"),
    ],
)
def test_a_field_that_the_chosen_part_does_not_have_is_refused(stage, fields, message):
    with pytest.raises(ValueError, match=message):
        sampling.Sampler.from_config(stage, {}, **fields)


def test_the_defaults_of_a_configuration_are_a_sampler(stage):
    sampler = sampling.Sampler.from_config(stage, sampler_fields.default_section())
    assert sampler.rule == samplers.Ancestral()
    assert set(sampler_fields.default_section()) < set(sampler_fields.FIELDS)


def test_a_negative_prompt_takes_the_place_of_the_null(stage, params):
    def sample(**fields):
        sampler = sampling.Sampler.from_config(stage, {}, steps=3, **fields)
        return np.concatenate(list(sampler.stream(params, jax.random.key(1), ["red left"])))

    plain = sample(guidance=3.0)
    assert (plain != sample(guidance=3.0, negative="green left")).any()
    # Guidance away from the prompt itself leaves the prompt alone.
    same, alone = sample(guidance=3.0, negative="red left"), sample(guidance=1.0)
    assert np.abs(same.astype(int) - alone).max() <= 1
    with pytest.raises(ValueError, match="negative = 'red': acts through classifier-free guidance"):
        sample(guidance=1.0, negative="red")
    with pytest.raises(ValueError, match="does not know the word 'dog'"):
        sample(guidance=3.0, negative="dog red")


def test_every_configured_field_of_a_rule_exists(stage):
    for name in samplers.RULES:
        assert isinstance(
            sampling.Sampler.from_config(stage, {}, sampler=name).rule, samplers.RULES[name]
        )


def test_bad_values_of_a_configuration_are_told_before_compilation():
    config = vdm.default_config()
    for field, value in {"rho": "0", "sigma_max": "-1", "churn": "-1", "corrector": "2"}.items():
        config_lib.override(config, f"sample.{field}", value)
    with pytest.raises(config_lib.ConfigError) as error:
        config_lib.validate(config)
    for field in ("rho", "sigma_max", "churn", "corrector"):
        assert f"sample.{field} = " in str(error.value)


@pytest.mark.parametrize(
    "fields",
    [
        {"sampler": "dpmpp_2m_sde", "grid": "karras", "corrector": 0.1},
        {"sampler": "heun", "grid": "logsnr", "churn": 1.0},
        {"sampler": "distilled", "grid": (-6.0, 0.0, 4.0, float("inf"))},
    ],
    ids=lambda fields: fields["sampler"],
)
def test_videos_of_other_rules_do_not_depend_on_the_batch(stage, params, fields):
    drawn = []
    for size in (2, 3):
        sampler = sampling.Sampler.from_config(stage, {}, steps=3, batch_size=size, **fields)
        stream = sampler.stream(params, jax.random.key(7), PROMPTS[:3])
        drawn.append(np.concatenate(list(stream)).astype(int))
    assert drawn[0].shape == (3, 3, 4, 4, 3)
    # Equal to rounding, which can be one level of 255.
    assert np.abs(drawn[0] - drawn[1]).max() <= 1
    assert drawn[0].std() > 0


@pytest.fixture
def tiny_system(monkeypatch, stage):
    monkeypatch.setattr(systems, "build", lambda config: stage)


def test_a_model_file_holds_parameters_and_configuration(
    tiny_system, stage, params, make_config, tmp_path, assert_trees_equal
):
    config = make_config()
    path = pretrained.save_model(tmp_path / "models" / "tiny.safetensors", params, config)
    with safetensors.safe_open(path, framework="numpy") as file:
        assert "Dense_0/kernel" in file.keys()  # noqa: SIM118 (it is no dictionary)
        assert json.loads(file.metadata()["config"])["train"]["seed"] == 3
    model = pretrained.load(path)
    assert_trees_equal(model.params, params)
    assert config_lib.to_dict(model.config) == config_lib.to_dict(config)

    video = model.sample(jax.random.key(0), prompt="red left", num_samples=2)
    assert video.shape == (2, 3, 4, 4, 3) and video.dtype == np.uint8
    both = model.sample(jax.random.key(0), prompts=["red left", "red right"], steps=3)
    assert both.shape == (2, 3, 4, 4, 3)
    cond = jax.tree.map(jnp.asarray, stage.encode(["red left"]))
    prediction = model.denoiser(jnp.zeros((1, 3, 4, 4, 3)), jnp.zeros(1), cond)
    assert prediction.x.shape == (1, 3, 4, 4, 3)
    assert model.schedule is stage.process.schedule
    for arguments in ({}, {"prompt": "red left", "prompts": ["red left"]}, {"prompts": "red"}):
        with pytest.raises(ValueError, match="prompt"):
            model.sample(jax.random.key(0), **arguments)


def test_a_model_file_of_half_precision_is_half_as_large(
    tiny_system, params, make_config, tmp_path, monkeypatch
):
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path)
    whole = pretrained.save_model(tmp_path / "whole.safetensors", params, make_config())
    half = tmp_path / "cascade" / "half.safetensors"
    pretrained.save_model(half, params, make_config(), half=True)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert whole.stat().st_size - half.stat().st_size == 2 * count
    assert pretrained.shipped_names() == ["cascade/half", "whole"]
    found = pretrained.load("cascade/half").params
    expected = jax.tree.map(lambda leaf: leaf.astype(jnp.float16).astype(jnp.float32), params)
    chex.assert_trees_all_equal(found, expected)
    chex.assert_trees_all_equal_dtypes(found, params)
    large = jax.tree.map(lambda leaf: leaf + 1e5, params)  # float16 ends at 65504
    with pytest.raises(ValueError, match="not finite, not saved"):
        pretrained.save_model(half, large, make_config(), half=True)


def test_a_working_directory_is_loaded_with_its_average(
    tiny_system, stage, make_config, make_dataset, train_step, tmp_path, assert_trees_equal
):
    result = loop.train(
        stage, make_config(steps=2), tmp_path, make_dataset(), train_step=train_step
    )
    model = pretrained.load(tmp_path)
    assert_trees_equal(model.params, result.state.ema)
    assert model.config.train.steps == 2


def test_what_cannot_be_loaded_is_told(tiny_system, params, make_config, tmp_path, monkeypatch):
    with pytest.raises(checkpoints.CheckpointError, match="nothing has been trained there"):
        pretrained.load(tmp_path)
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path)
    pretrained.save_model(tmp_path / "moving_shapes.safetensors", params, make_config())
    assert pretrained.shipped_names() == ["moving_shapes"]
    assert pretrained.load("moving_shapes").params.keys() == params.keys()
    with pytest.raises(FileNotFoundError, match="the nearest of these is moving_shapes"):
        pretrained.load("moving_shape")

    wrong = {**params, "Dense_0": {"bias": params["Dense_0"]["bias"]}}
    pretrained.save_model(tmp_path / "wrong.safetensors", wrong, make_config())
    with pytest.raises(ValueError, match="do not match: Dense_0/kernel"):
        pretrained.load(tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match="not finite, not saved"):
        nan = jax.tree.map(lambda leaf: leaf * jnp.nan, params)
        pretrained.save_model(tmp_path / "nan.safetensors", nan, make_config())
    safetensors.numpy.save_file({"x": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not a model of this package"):
        pretrained.load(tmp_path / "other.safetensors")
