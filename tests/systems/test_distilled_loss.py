"""What a round of distillation trains on: its loss against the parts it is composed of, and what
its configuration takes from the ladder's and from the teacher's."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_stage
from tests.test_wiring import make_config
from vdm_jax import config as config_lib
from vdm_jax.diffusion import distillation as targets
from vdm_jax.diffusion import guidance, losses
from vdm_jax.diffusion.schedules import expand
from vdm_jax.models import layers
from vdm_jax.stage import distribution
from vdm_jax.stage.conditions.scalar import GuidanceScale
from vdm_jax.stage.distilled import DistilledStage
from vdm_jax.stage.distribution import DistributionStage
from vdm_jax.systems import distillation

CONFIG = Path(__file__).parents[2] / "configs" / "vdm" / "moving_shapes_distill.py"
KEY = jax.random.key(5)


class Network(nn.Module):
    """Depends on all that it takes, and in training on the key of the dropout."""

    layout: layers.Layout = layers.ANYWHERE
    remat: str = "none"
    multiple = 1
    reach = None

    @nn.compact
    def __call__(self, z, logsnr, cond, *, num_images=0, train=False):
        weight = self.param("weight", nn.initializers.ones, (4,))
        words = cond["tokens"].mean(1) * cond["keep_text"]
        scale = cond.get("guidance", jnp.zeros_like(logsnr))
        added = weight[1] * logsnr / 10 + weight[2] * scale + weight[3] * words
        noise = jax.random.normal(self.make_rng("dropout"), z.shape) if train else 0.0
        return jnp.tanh(weight[0] * z + expand(added, z.ndim)) + 0.1 * noise


TEACHER = dataclasses.replace(tiny_stage.STAGE, network=Network())
STUDENT = dataclasses.replace(TEACHER, conditions=(*TEACHER.conditions, GuidanceScale()))


def weights(*values):
    return {"weight": np.array(values, np.float32)}


PARAMS, FROZEN = weights(0.5, 0.3, 0.2, 0.4), {"teacher": weights(0.4, -0.2, 0.1, 0.3)}


def make_stage(target, **changes):
    fields = {field.name: getattr(STUDENT, field.name) for field in dataclasses.fields(STUDENT)}
    teacher = TEACHER if target == "guidance" else STUDENT
    settings = {"teacher": teacher, "target": target, "steps": 4, "guidance_range": (2.0, 5.0)}
    return DistilledStage(**fields, **(settings | changes))


def batch():
    video = np.random.default_rng(0).integers(0, 256, (4, *TEACHER.video_shape), np.uint8)
    cond = TEACHER.encode(["red left", "green right", "red right", "left left"])
    batch = {"video": video, "tokens": cond["tokens"], "token_mask": cond["token_mask"]}
    return jax.tree.map(jnp.asarray, batch)


def expected(stage, threshold, loss):
    """The loss from its parts, and the error of x̂."""
    time_key, eps_key, guidance_key, dropout_key = jax.random.split(KEY, 4)
    x, cond, _ = stage.example(batch(), jax.random.fold_in(KEY, 4), FROZEN)
    scale = jax.random.uniform(guidance_key, (4,), minval=2.0, maxval=5.0)
    frozen = stage.teacher.denoiser(FROZEN["teacher"])
    if stage.target == "guidance":
        teacher = guidance.classifier_free(frozen, scale, stage.teacher.null)
    else:

        def teacher(z, logsnr, cond):
            return frozen(z, logsnr, {**cond, "guidance": scale})

    teacher = threshold(teacher)

    def student(z, logsnr, cond):
        def network(z, logsnr, cond):
            cond = {**cond, "guidance": scale}
            options = {"train": True, "rngs": {"dropout": dropout_key}}
            return Network().apply({"params": PARAMS}, z, logsnr, cond, **options)

        return stage.process.denoiser(network)(z, logsnr, cond)

    t, mid, s = stage._logsnrs(time_key, 4)
    z = stage.process.add_noise(x, jax.random.normal(eps_key, x.shape), t)
    target = {
        "guidance": lambda: teacher(z, t, cond).x,
        "progressive": lambda: targets.two_step_target(teacher, z, t, mid, s, cond),
        "consistency": lambda: targets.consistency_target(teacher, student, z, t, s, cond),
    }[stage.target]()
    prediction = student(z, t, cond)
    value = targets.distillation_loss(losses.make_loss(loss), prediction, target).mean()
    return value, jnp.mean((prediction.x - target) ** 2)


@pytest.mark.parametrize(
    ("target", "threshold", "loss"),
    [
        ("guidance", "none", "truncated_snr"),
        ("progressive", "dynamic", "v_mse"),
        ("consistency", "static", "truncated_snr"),
    ],
)
def test_the_loss_is_composed_as_the_papers_say(target, threshold, loss):
    stage = make_stage(target, threshold=threshold, loss_name=loss)
    clip = {
        "none": lambda denoiser: denoiser,
        "static": guidance.static_clip,
        "dynamic": lambda denoiser: guidance.dynamic_threshold(denoiser, 0.995),
    }[threshold]
    value, metrics = jax.jit(lambda: stage.loss(PARAMS, batch(), KEY, FROZEN))()
    wanted, error = jax.jit(lambda: expected(stage, clip, loss))()
    np.testing.assert_allclose(value, wanted, rtol=1e-5)
    np.testing.assert_allclose(metrics["x_mse"], error, rtol=1e-5)


def matching_stage(**changes):
    fields = {field.name: getattr(STUDENT, field.name) for field in dataclasses.fields(STUDENT)}
    settings = {"teacher": STUDENT, "steps": 3, "guidance_range": (2.0, 5.0), "threshold": "none"}
    return DistributionStage(**fields, **(settings | changes))


BOTH = {"student": PARAMS, "critic": weights(0.6, 0.1, 0.2, 0.3)}


def matched(stage, params=BOTH, frozen=FROZEN, key=KEY):
    """Loss, metrics and gradients of distribution matching."""

    def value(params, frozen, key):
        return stage.loss(params, batch(), key, frozen)

    (loss, metrics), grads = jax.jit(jax.value_and_grad(value, has_aux=True))(params, frozen, key)
    return float(loss), metrics, grads


def test_the_student_moves_by_the_difference_of_teacher_and_critic():
    stage = matching_stage(critic_updates=1)
    loss, metrics, grads = matched(stage)
    assert loss == pytest.approx(float(metrics["critic_loss"] + metrics["student_loss"]))
    assert np.any(grads["student"]["weight"]) and np.any(grads["critic"]["weight"])
    far = matched(stage, frozen={"teacher": weights(-1.0, 0.5, 0.0, 1.0)})[1]
    assert 0 < 2 * float(metrics["distance"]) < float(far["distance"])
    # The critic learns what it learns beside a student that stands still.
    still = matched(dataclasses.replace(stage, critic_updates=10**9))
    np.testing.assert_allclose(grads["critic"]["weight"], still[2]["critic"]["weight"], rtol=1e-5)
    assert float(still[1]["student_loss"]) == 0 and not np.any(still[2]["student"]["weight"])


def test_the_student_has_its_turn_in_one_of_many_updates():
    stage = matching_stage(critic_updates=4)
    run = jax.jit(lambda key: stage.loss(BOTH, batch(), key, FROZEN)[1]["distance"] > 0)
    turns = [bool(run(key)) for key in jax.random.split(jax.random.key(1), 100)]
    assert 12 <= sum(turns) <= 40  # 25 are expected; beyond this is one case of 3,000


def test_the_student_is_trained_where_its_own_steps_lead():
    """z before step k is what `k` steps of the sampler make of noise."""
    stage = matching_stage(steps=3)
    grid = distribution.grids.logsnr_grid(stage.process.schedule, 3)

    def student(z, logsnr, cond):
        x = jnp.full(z.shape, 5.0)  # far from noise, so that z tells how much of it there is
        return stage.process.denoiser(lambda *_: 0 * z)(z, logsnr, cond).with_x(x)

    z, logsnr = stage._begin(student, {}, (64, *stage.z_shape), KEY)
    steps = [int(np.flatnonzero(np.asarray(grid) == level)[0]) for level in np.asarray(logsnr)]
    assert set(steps) == {0, 1, 2}
    alpha, sigma = (np.asarray(c) for c in distribution.alpha_sigma(logsnr))
    made = np.asarray([0.0 if step == 0 else 5.0 for step in steps])
    np.testing.assert_allclose(z.mean((1, 2, 3, 4)), alpha * made, atol=0.5)
    np.testing.assert_allclose(z.std((1, 2, 3, 4)), sigma, rtol=0.3, atol=1e-3)


def test_samples_and_the_start_are_the_students():
    stage = matching_stage()
    begun = stage.begun(PARAMS)
    assert set(begun) == {"student", "critic"} == set(stage.abstract_params())
    assert stage.student(begun) is PARAMS and stage.network_params(begun, {}) is PARAMS
    np.testing.assert_array_equal(begun["critic"]["weight"], PARAMS["weight"])


def test_a_layout_reaches_student_and_teacher():
    layout = layers.Layout(blocks=2)
    stage = make_stage("guidance").with_layout(layout)
    assert stage.network.layout is layout and stage.teacher.network.layout is layout
    assert TEACHER.with_layout(layout).network.layout is layout


# Fields of the ladder's configuration, and the values that every round is to take from it.
TAKEN = {
    "device": "cpu",
    "mesh.fsdp": 2,
    "data.data_dir": "elsewhere",
    "data.workers": 3,
    "train.seed": 9,
    "train.batch_size": 6,
    "train.learning_rate": 0.5,
    "checkpoint.every": 7,
    "distill.teacher_dtype": "float32",
    "distill.threshold": "dynamic",
    "distill.guidance_min": 1.5,
    "distill.guidance_max": 3.5,
    "distill.loss": "v_mse",
    "distill.critic_updates": 3,
}
LADDER = {
    "teacher_steps": 16,
    "end_steps": 2,
    "guidance_updates": 11,
    "updates": 12,
    "last_updates": 13,
    "consistency_updates": 14,
    "consistency_steps": 32,
    "distribution_updates": 15,
    "distribution_steps": 3,
    "guidance": 2.5,
}


@pytest.fixture(scope="module")
def ladder():
    changes = TAKEN | {f"distill.{name}": value for name, value in LADDER.items()}
    return config_lib.load_config(CONFIG, {name: str(value) for name, value in changes.items()})


def test_what_the_rounds_are(ladder):
    assert distillation.rounds(ladder.distill) == [
        distillation.Round(
            name=name,
            target=target,
            teacher=teacher,
            steps=steps,
            sample_steps=sample_steps,
            updates=updates,
        )
        for name, target, teacher, steps, sample_steps, updates in [
            ("guidance", "guidance", "", 16, (16,), 11),
            ("progressive_8", "progressive", "guidance", 8, (8,), 12),
            ("progressive_4", "progressive", "progressive_8", 4, (4,), 12),
            ("progressive_2", "progressive", "progressive_4", 2, (2,), 13),
            ("consistency", "consistency", "guidance", 32, (8, 4, 2, 1), 14),
            ("distribution", "distribution", "guidance", 3, (3,), 15),
        ]
    ]


def test_what_a_round_takes_from_the_ladder_and_from_its_teacher(ladder):
    own = [("data.image_frames", 2), ("sample.eta", 0.5), ("sample.churn", 1.0)]
    own += [("sample.corrector", 0.1), ("sample.grid", "logsnr"), ("sample.augmentation", 1.0)]
    teacher = make_config("vdm", own)
    for this in distillation.rounds(ladder.distill):
        config = distillation.round_config(teacher, ladder, this, "there", "sha256:1")
        fields = dict(config_lib.flatten(config))
        matching = this.target == "distribution"
        not_its = {"distill.loss" if matching else "distill.critic_updates"}
        taken = {name: value for name, value in TAKEN.items() if name not in not_its}
        assert {name: fields[name] for name in taken} == taken and not not_its & set(fields)
        sampler = "consistency" if matching or this.target == "consistency" else "ddim"
        wanted = {
            "distill.teacher": "there",
            "distill.teacher_digest": "sha256:1",
            "distill.round": this.teacher,
            "distill.target": this.target,
            "distill.steps": this.steps,
            "train.steps": this.updates,
            "train.minutes": 0.0,
            "train.init_from": "",
            "train.cond_dropout": 0.0,
            "data.image_frames": 0,
            "model.guidance_embedding": True,
            "sample.sampler": sampler,
            "sample.steps": this.sample_steps[0],
            "sample.guidance": 2.5,
            "sample.threshold": "dynamic",
            "sample.eta": None,
            "sample.churn": None,
            "sample.corrector": 0.0,
            "sample.grid": "time",
            # The teacher's.
            "sample.augmentation": 1.0,
            "model.channels": teacher.model.channels,
            "text.vocabulary": teacher.text.vocabulary,
        }
        assert {name: fields[name] for name in wanted} == wanted
        stage = distillation.build_round(TEACHER, config, this)
        found = (stage.steps, stage.guidance_range, stage.threshold)
        assert found == (this.steps, (1.5, 3.5), "dynamic")
        if matching:
            assert (type(stage), stage.critic_updates) == (DistributionStage, 3)
        else:
            assert (stage.target, stage.loss_name) == (this.target, "v_mse")
        assert stage.teacher is TEACHER and stage.find(GuidanceScale).trained == (1.5, 3.5)
    assert teacher.data.image_frames == 2  # and the teacher's is as it was


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_steps": 0}, "teacher_steps = 0: must be a power of 2"),
        ({"end_steps": 3}, "end_steps = 3: must be a power of 2"),
        ({"last_updates": 0}, "last_updates = 0: must be >= 1"),
        ({"consistency_steps": 0}, "consistency_steps = 0: must be >= 1"),
        ({"samples": 0}, "samples = 0: must be >= 1"),
        ({"consistency_updates": -1}, "consistency_updates = -1: must be >= 0"),
        ({"distribution_updates": -1}, "distribution_updates = -1: must be >= 0"),
        ({"critic_updates": 0}, "critic_updates = 0: must be >= 1"),
        ({"threshold": "hard"}, "threshold = 'hard': must be none, static or dynamic"),
        ({"guidance_min": 1, "guidance_max": 1, "guidance_updates": -1}, "-1: must be >= 0"),
        ({"guidance_min": 2, "guidance_max": 2, "guidance_updates": 0}, "guidance to fold in"),
        (
            {
                "guidance_min": 1,
                "guidance_max": 1,
                "guidance_updates": 0,
                "consistency_updates": 5,
            },
            "guidance to fold in",
        ),
    ],
)
def test_a_ladder_that_cannot_be_is_refused(changes, message):
    distill = distillation.default_config().distill.copy_and_resolve_references().unlock()
    distill.update(changes)
    with pytest.raises(config_lib.ConfigError, match=message):
        distillation.rounds(distill)
