"""The ladder of distillation: its rounds, and a stage that learns from a teacher."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import drawn, tiny
from vdm_jax import config as config_lib
from vdm_jax import systems
from vdm_jax.stage import distilled, guidance
from vdm_jax.stage import sampler as sampling
from vdm_jax.systems import distillation

CONFIG = Path(__file__).parents[2] / "configs" / "vdm" / "moving_shapes_distill.py"


def ladder(**changes):
    overrides = {f"distill.{name}": str(value) for name, value in changes.items()}
    return distillation.rounds(config_lib.load_config(CONFIG, overrides).distill)


def test_rounds_halve_the_steps_and_each_learns_from_the_one_before():
    rounds = ladder(teacher_steps=16, end_steps=2, consistency_updates=5)
    names = ["guidance", "progressive_8", "progressive_4", "progressive_2", "consistency"]
    assert [this.name for this in rounds] == names
    assert [this.teacher for this in rounds] == ["", *names[:3], "guidance"]
    assert [this.steps for this in rounds[1:4]] == [8, 4, 2]
    assert rounds[-1].sample_steps == (8, 4, 2, 1)
    assert ladder(consistency_updates=0)[-1].name == "progressive_1"
    last = ladder(distribution_updates=7, distribution_steps=2)[-1]
    assert (last.name, last.teacher, last.sample_steps) == ("distribution", "guidance", (2,))
    plain = ladder(
        teacher_steps=4, end_steps=1, guidance_max=1, guidance_updates=0, consistency_updates=0
    )
    assert [(this.name, this.teacher) for this in plain] == [
        ("progressive_2", ""),
        ("progressive_1", "progressive_2"),
    ]


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("teacher_steps", 48, "distill.teacher_steps = 48: must be a power of 2"),
        ("end_steps", 128, "distill.end_steps = 128: must be at most"),
        ("guidance_max", 0.5, "distill.guidance_max = 0.5: must be >="),
        ("loss", "l1", "distill.loss = 'l1': must be one of v_mse"),
        ("updates", 0, "distill.updates = 0: must be >= 1"),
        ("guidance_updates", 0, "there is guidance to fold in"),
        ("teacher_dtype", "int8", "distill.teacher_dtype = 'int8'"),
    ],
)
def test_values_that_are_not_allowed(field, value, message):
    with pytest.raises(config_lib.ConfigError, match=message):
        ladder(**{field: value})


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    path = tiny.write_config(tmp_path_factory.mktemp("tiny"))
    return config_lib.load_config(path, {"text.vocabulary": "a,red,blue,green,square"})


def make_stage(teacher_config, index):
    config = config_lib.load_config(CONFIG, {"distill.teacher_steps": "4"})
    this = distillation.rounds(config.distill)[index]
    round_config = distillation.round_config(teacher_config, config, this, "somewhere", "sha256:0")
    before = teacher_config
    if this.teacher:
        first = distillation.rounds(config.distill)[0]
        before = distillation.round_config(teacher_config, config, first, "somewhere", "sha256:0")
    return distillation.build_round(systems.build(before), round_config, this)


def shaken(params, seed):
    """Parameters none of which is zero, as after training."""
    leaves, structure = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(
        structure, [leaf + 0.1 * rng.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    )


@pytest.fixture(scope="module")
def guided(teacher):
    """The stage of the first round, its parameters, the teacher's."""
    stage = make_stage(teacher, 0)
    params = stage.init(jax.random.key(0))
    return stage, params, drawn.params(stage.teacher)


def batch_of(stage):
    video = np.random.default_rng(0).integers(0, 256, (4, *stage.video_shape), np.uint8)
    cond = stage.encode(["a red square", "a blue square", "a green square", "red"])
    batch = {"video": video, "tokens": cond["tokens"], "token_mask": cond["token_mask"]}
    return jax.tree.map(jnp.asarray, batch)


def test_a_student_begins_as_its_teacher_at_any_guidance(guided):
    stage, params, teacher_params = guided
    both = {**params, **{k: v for k, v in teacher_params.items() if k != "condition"}}
    both["condition"] = {**params["condition"], **teacher_params["condition"]}
    assert set(params["condition"]) - set(teacher_params["condition"]) == {
        "guidance_in",
        "guidance_out",
    }
    z = jax.random.normal(jax.random.key(3), (2, *stage.video_shape))
    cond = jax.tree.map(jnp.asarray, stage.encode(["a red square", "blue"]))
    teacher = jax.jit(lambda params: stage.teacher.denoiser(params)(z, jnp.zeros(2), cond).x)
    expected = teacher(teacher_params)

    @jax.jit
    def student(params, scale):
        denoiser = guidance.guided(stage.denoiser(params), stage, scale)
        return denoiser(z, jnp.zeros(2), cond).x

    for scale in (1.0, 3.0):
        np.testing.assert_allclose(student(both, scale), expected, atol=1e-5)
    # Once trained it does hear the scale.
    both["condition"]["guidance_out"] = shaken(both["condition"]["guidance_out"], 4)
    assert np.abs(student(both, 1.0) - student(both, 3.0)).max() > 1e-4


@pytest.mark.parametrize("target", distilled.TARGETS)
def test_every_target_trains_the_student_and_not_the_teacher(teacher, guided, target):
    index = {"guidance": 0, "progressive": 1, "consistency": -1}[target]
    stage = make_stage(teacher, index)
    assert stage.target == target
    params = drawn.params(stage, 5)
    teacher_params = guided[2] if target == "guidance" else shaken(params, 6)

    def value(params, teacher):
        frozen = {"teacher": teacher}
        return stage.loss(params, batch_of(stage), jax.random.key(1), frozen)[0]

    loss = jax.jit(jax.value_and_grad(value))
    before, gradient = loss(params, teacher_params)
    assert np.isfinite(before) and before > 0
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    nearer = jax.tree.map(lambda p, g: p - 0.02 * g / norm, params, gradient)
    assert loss(nearer, teacher_params)[0] < before
    assert loss(params, shaken(teacher_params, 7))[0] != before  # it is the teacher that is learned


def test_noise_levels_are_those_of_the_samplers_grid(teacher):
    stage = make_stage(teacher, 1)
    assert stage.steps == 2
    t, mid, s = stage._logsnrs(jax.random.key(0), 8)
    sampler = sampling.Sampler.from_config(stage, {}, steps=2)
    student = np.asarray(sampler.logsnrs())
    whole = sampling.Sampler.from_config(stage, {}, steps=4)
    chosen = np.asarray([np.flatnonzero(student == value)[0] for value in np.asarray(t)])
    assert sorted(chosen) == [0, 0, 0, 0, 1, 1, 1, 1]
    np.testing.assert_array_equal(s, student[chosen + 1])
    np.testing.assert_array_equal(mid, np.asarray(whole.logsnrs())[2 * chosen + 1])


def test_the_student_takes_the_scales_by_which_its_teacher_is_guided(guided, monkeypatch):
    stage, params, teacher_params = guided
    taken, guiding = [], []
    output, guide = distilled.StudentStage.raw_output, guidance.guided

    def record_input(self, params, z, logsnr, cond, **options):
        taken.append(cond["guidance"])
        return output(self, params, z, logsnr, cond, **options)

    def record_scale(denoiser, stage, scale):
        guiding.append(scale)
        return guide(denoiser, stage, scale)

    monkeypatch.setattr(distilled.DistilledStage, "raw_output", record_input)
    monkeypatch.setattr(distillation.guidance, "guided", record_scale)

    def scales():
        stage.loss(params, batch_of(stage), jax.random.key(1), {"teacher": teacher_params})
        return taken[0], guiding[0]

    student, teacher = jax.jit(scales)()
    np.testing.assert_array_equal(student, teacher)
    assert len(set(np.asarray(teacher).tolist())) > 1


def test_training_alone_does_not_make_a_network_that_is_told_guidance(guided):
    stage, params, teacher_params = guided
    assert dataclasses.replace(stage, target="guidance") == stage
    with pytest.raises(ValueError, match="cond lacks guidance"):
        systems.vdm.Stage.loss(stage, params, batch_of(stage), jax.random.key(0))
