"""A stage reports the shapes, drop-out, null conditions, keys and cost that it computes with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_stage
from tests.test_wiring import light, make_config
from vdm_jax import systems
from vdm_jax.models.cost import level_table
from vdm_jax.stage import resize
from vdm_jax.stage.conditions.base import Base
from vdm_jax.stage.conditions.prompt import Label, Text
from vdm_jax.stage.conditions.scalar import FrameRate, GuidanceScale
from vdm_jax.stage.conditions.video import LowResVideo
from vdm_jax.stage.protocols import Example, same
from vdm_jax.stage.refinement import Plain
from vdm_jax.stage.space import from_uint8
from vdm_jax.stage.stage import Stage

KEY = jax.random.key(2)
REFINEMENT = {
    "stage.residual": 0.2,
    "stage.fill": "blend",
    "stage.shape": (8, 8, 8),
    "stage.low_res": (4, 8, 8),
}
STAGES = {
    "vdm": ("vdm", {"model.num_labels": 5}),
    "ssr": ("imagen_video", {}),
    "tsr": ("imagen_video", REFINEMENT),
    "lumiere": ("lumiere", {"stage.masks": ("inpaint",)}),
}


def build(name, **changes):
    system, fields = STAGES[name]
    fields = {"train.cond_dropout": 0.3, **fields, **changes}
    return light(systems.build(make_config(system, fields.items())))


def shapes(tree):
    return {name: (leaf.shape, jnp.dtype(leaf.dtype)) for name, leaf in tree.items()}


def user_inputs(stage, n):
    """The stage without labels, and what a user gives to it, encoded."""
    conditions = tuple(c for c in stage.conditions if not isinstance(c, Label))
    stage, inputs = dataclasses.replace(stage, conditions=conditions), {}
    if (low_res := stage.find(LowResVideo)) is not None:
        inputs = {"low_res": np.full((n, *low_res.low_res_shape), 100, np.uint8)}
    return stage, stage.encode(["red"] * n, inputs=inputs)


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("images", [0, 2])
def test_a_batch_becomes_conditions_of_the_shapes_that_the_stage_says(name, images):
    stage = build(name)
    batch = stage.abstract_batch(6, images)
    x, cond, _ = jax.eval_shape(stage.example, batch, KEY)
    assert x.shape == (6, stage.z_shape[0] + images, *stage.z_shape[1:]) and x.dtype == jnp.float32
    wanted = shapes(stage.cond_shapes(6, images))
    found = shapes(cond)
    assert {name: found[name] for name in wanted} == wanted
    assert found.keys() - wanted.keys() <= {"low_res_residual"}


@pytest.mark.parametrize("name", STAGES)
def test_inputs_become_conditions_of_the_shapes_that_the_stage_says(name):
    stage, inputs = user_inputs(build(name), 3)
    assert shapes(inputs) == shapes(stage.abstract_inputs(3))
    cond = stage.begin(jax.tree.map(jnp.asarray, inputs), 3, KEY, {})
    wanted, found = shapes(stage.cond_shapes(3, 0)), shapes(cond)
    # Sampling sets the masked video, by its method.
    wanted = {
        name: shape for name, shape in wanted.items() if "mask" not in name or "token" in name
    }
    assert {name: found[name] for name in wanted} == wanted


@pytest.mark.parametrize("drop", [0.0, 0.3, 1.0])
def test_prompts_are_dropped_as_often_as_they_are_said_to_be(drop):
    stage = build("vdm", **{"train.cond_dropout": drop})
    assert [condition.dropout for condition in stage.conditions] == [drop, drop]
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), stage.abstract_batch(400))
    _, cond, _ = stage.example(zeros, KEY)
    kept = {name: np.asarray(cond[name]) for name in ("keep_text", "keep_label")}
    for keep in kept.values():
        assert keep.mean() == pytest.approx(1 - drop, abs=0.08)
    if drop == 0.3:  # each condition has a key of its own
        assert np.mean(kept["keep_text"] != kept["keep_label"]) > 0.2


def test_the_null_is_of_the_conditions_that_are_named():
    text = tiny_stage.STAGE.conditions[0]
    stage = dataclasses.replace(tiny_stage.STAGE, conditions=(text, Label(count=3)))
    cond = {"tokens": 1, "keep_text": jnp.ones(2, bool), "keep_label": jnp.ones(2, bool)}

    def kept(names):
        found = stage.null(cond, names)
        assert found["tokens"] == 1
        return bool(found["keep_text"].all()), bool(found["keep_label"].all())

    assert kept(["text"]) == (False, True) and kept(["label"]) == (True, False)
    assert kept(None) == (False, False) == kept(["text", "label"]) and kept([]) == (True, True)
    assert FrameRate(fps=1.0).null(cond) is cond


def test_a_condition_that_overrides_nothing_reads_and_gives_nothing():
    class Nothing(Base):
        name = "nothing"
        mechanism = "vector"

    nothing = Nothing()
    assert nothing.batch_shapes(2, 1) == nothing.cond_shapes(2, 1) == nothing.input_shapes(2) == {}
    clip = jnp.zeros((2, 1, 1, 1, 3))
    example = Example(batch={}, clip=clip, images=None, fps=jnp.ones(2))
    assert nothing.example(example, KEY) == nothing.begin({"a": 1}, 2, KEY, {}, same) == {}
    assert nothing.dropout == 0.0 and nothing.encode(None, 2) == {} and nothing.like_z == ()
    with pytest.raises(ValueError, match="nothing: this model takes no such input"):
        nothing.encode(3, 2)


def test_kinds_of_conditions_are_found():
    stage = build("ssr")
    assert stage.find(FrameRate) is stage.conditions[1] and stage.find(GuidanceScale) is None
    assert stage.text_encoder is stage.find(Text).encoder and not stage.takes_guidance
    student = dataclasses.replace(stage, conditions=(*stage.conditions, GuidanceScale()))
    assert student.takes_guidance
    bare = dataclasses.replace(stage, conditions=())
    assert bare.text_encoder is None and bare.abstract_inputs(1) == {} == bare.cond_shapes(1, 0)


def test_frame_rates_reach_the_condition():
    stage = build("ssr", **{"stage.data_fps": 24.0})
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), stage.abstract_batch(2))
    np.testing.assert_array_equal(stage.example(zeros, KEY)[1]["fps"], 24.0)
    drawn = zeros | {"fps": jnp.array([12.0, 6.0])}
    np.testing.assert_array_equal(stage.example(drawn, KEY)[1]["fps"], [12.0, 6.0])
    rate = stage.find(FrameRate)
    np.testing.assert_array_equal(rate.begin({}, 2, KEY, {}, same)["fps"], [24.0, 24.0])
    np.testing.assert_array_equal(rate.begin({}, 2, KEY, {"fps": 3.0}, same)["fps"], [3.0, 3.0])


def test_cost_is_of_the_clip_and_its_images():
    stage = systems.build(make_config("vdm"))
    frames, *rest = stage.z_shape
    levels = stage.cost(2)
    assert levels == level_table(stage.network, (frames + 2, *rest), stage.cond_shapes(1, 2), 2)
    assert levels != level_table(stage.network, (frames + 2, *rest), stage.cond_shapes(1, 0), 0)
    assert stage.train_flops(2) == 3 * sum(level.flops for level in levels)
    assert stage.train_flops(2) > stage.train_flops() > 0


def test_labels_reach_the_condition():
    stage = build("vdm", **{"train.cond_dropout": 0.0})
    labels = {"label": jnp.array([3, 1, 4]), "image_label": jnp.array([[1, 2], [3, 4], [0, 1]])}
    wanted = {name: (leaf.shape, leaf.dtype) for name, leaf in labels.items()}
    for abstract in (stage.abstract_batch(3, 2), stage.cond_shapes(3, 2)):
        found = shapes(abstract)
        assert {name: found[name] for name in wanted} == wanted
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), stage.abstract_batch(3, 2))
    _, cond, _ = stage.example({**zeros, **labels}, KEY)
    for name, label in labels.items():
        np.testing.assert_array_equal(cond[name], label)
    label = next(c for c in stage.conditions if isinstance(c, Label))
    found = label.encode((["4", "0"], ["1", "2"]), 2)
    assert found["label"].tolist() == [4, 0] and found["keep_label"].tolist() == [True, True]
    assert label.null(found)["label"].tolist() == [1, 2]
    with pytest.raises(ValueError, match="'5': this model knows classes, 0 to 4"):
        label.rows(["5"])


def test_the_loss_is_weighed_by_the_parametrisation():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Heavy(Plain):
        def weight(self, logsnr, cond):
            return 3.0 * jnp.ones_like(logsnr)

    plain = tiny_stage.STAGE
    heavy = dataclasses.replace(plain, parametrisation=Heavy())
    batch = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), plain.abstract_batch(2))
    params = plain.init(KEY)
    value, three = (jax.jit(stage.loss)(params, batch, KEY)[0] for stage in (plain, heavy))
    np.testing.assert_allclose(three, 3 * value, rtol=1e-6)
    logsnr = jnp.array([-3.0, 5.0])
    np.testing.assert_array_equal(Plain().weight(logsnr, {}), [1.0, 1.0])
    raw, z = jnp.ones((2, 1, 1, 1, 1)), jnp.zeros((2, 1, 1, 1, 1))
    assert Plain().output(raw, z, logsnr, {}) is raw


def test_only_parameters_of_a_path_are_trained():
    params = {"a": {"kernel": 1, "bias": 2}, "ab": {"kernel": 3}}

    def trained(pattern):
        return dataclasses.replace(tiny_stage.STAGE, train_only=pattern).trained(params)

    assert trained("") == params
    assert trained("^a/") == {"a": {"kernel": 1, "bias": 2}, "ab": {"kernel": None}}
    assert trained("kernel$") == {"a": {"kernel": 1, "bias": None}, "ab": {"kernel": 3}}


def test_prompts_are_checked_without_being_encoded(monkeypatch):
    stage = tiny_stage.STAGE
    monkeypatch.setattr(Stage, "encode", None)
    stage.check_prompts(["red left"])
    with pytest.raises(ValueError, match="does not know the word 'dog'"):
        stage.check_prompts(["dog"])
    monkeypatch.undo()
    bare = dataclasses.replace(stage, conditions=())
    bare.check_prompts(["", ""])
    with pytest.raises(ValueError, match="trained without text"):
        bare.check_prompts(["", "red"])


def test_inputs_that_the_stage_does_not_take_are_refused():
    stage = tiny_stage.STAGE
    with pytest.raises(
        ValueError, match="low_res, mask: this model takes no such input; it has: te"
    ):
        stage.encode(["red"], inputs={"mask": 1, "low_res": 2})
    with pytest.raises(ValueError, match="low_res: this stage refines a video, and none was given"):
        build("ssr").encode(["red"])


@pytest.mark.parametrize(
    ("name", "fill"), [("ssr", "repeat"), ("tsr", "repeat"), ("tsr", "blank"), ("tsr", "blend")]
)
def test_a_refiner_is_conditioned_on_the_clip_made_coarse_and_fine_again(name, fill):
    plain = {"stage.fill": fill, "stage.residual": 0.0, "stage.max_augmentation": 0.0}
    stage = build(name, **plain, **{"data.num_frames": 8})
    rng = np.random.default_rng(0)
    batch = {
        key: rng.integers(0, 2 if leaf.dtype == bool else 6, leaf.shape).astype(leaf.dtype)
        for key, leaf in stage.abstract_batch(2, image_frames=2).items()
    }
    batch = jax.tree.map(jnp.asarray, batch)
    _, cond, count = stage.example(batch, KEY)
    frames, size = stage.video_shape[0], stage.video_shape[1:3]
    low = stage.find(LowResVideo).low_res_shape
    clip, images = (from_uint8(batch[key]) for key in ("video", "images"))
    wanted = resize.refine(resize.coarsen(clip, low[:3]), (frames, *size), fill)
    np.testing.assert_allclose(cond["low_res"][:, :frames], wanted, atol=1e-6)
    wanted = resize.refine(resize.coarsen(images, (2, *low[1:3])), (2, *size))
    if name == "tsr":  # no frames of an image are known
        wanted = jnp.zeros_like(wanted)
    np.testing.assert_allclose(cond["low_res"][:, frames:], wanted, atol=1e-6)
    assert count == 2
