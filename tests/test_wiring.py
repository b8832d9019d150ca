"""Every condition, sampler field, training field and model field reaches what it is for.

Each case changes one value and compares the traced programs: a field that is read nowhere, or lost
on the way, leaves the program as it was. Nothing is compiled. That the fields do the right thing is
what the other tests are about.
"""

import dataclasses
import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny_stage
from tests.cascades import TINY
from vdm_jax import config as config_lib
from vdm_jax import systems
from vdm_jax.diffusion.measurements import Downsample
from vdm_jax.parallel import sharding
from vdm_jax.stage import sampler as sampling
from vdm_jax.stage import sampler_fields
from vdm_jax.stage.conditions.scalar import FrameRate
from vdm_jax.systems import imagen_video, lumiere, vdm
from vdm_jax.training import optimizer, state, step

KEY = jax.random.key(0)
SMALL = {
    "channels": 8,
    "channel_mult": (1,),
    "num_res_blocks": (1,),
    "attention_levels": (),
    "head_dim": 4,
    "norm_groups": 2,
    "patch_size": 4,
    "embedding_dim": 16,
    "dtype": "float32",
}


def make_config(system="vdm", changes=()):
    """A configuration with a network as small as can be; changes: (dotted field, value)."""
    if system == "vdm":
        config = vdm.default_config().unlock()
        config.model.update(SMALL | {"num_res_blocks": 1})
        config.data.update(num_frames=4, image_size=8)
    elif system == "imagen_video":
        config = imagen_video.stage_config(TINY, "ssr_16").unlock()
        config.model.update(SMALL | {"temporal_levels": (0,)})
        config.data.update(num_frames=8, image_size=16, image_width=16)
    else:
        config = lumiere.stage_config("clip", (4, 8, 8), fps=8.0).unlock()
        config.model.update(SMALL)
        config.stage.masks = ("first_frame",)
        lumiere.inflate(config, resize=())
        config.data.update(num_frames=4, image_size=8, image_width=8)
    config.text.update(encoder="words", vocabulary=("red", "blue"), vocabulary_size=2, max_length=3)
    config.train.update(batch_size=4, warmup_steps=2, steps=10)
    config.sample.update(sampler="ddim", steps=4, guidance=2.0, threshold="static")
    for field, value in changes:
        section, name = field.split(".")
        config[section][name] = value
    return config


def fingerprint(function, *arguments):
    """The traced program: its operations, and the arrays in it."""
    closed = jax.make_jaxpr(function)(*arguments)
    text = re.sub(r"0x[0-9a-f]+", "", str(closed.jaxpr))
    return text, [np.asarray(leaf).tobytes() for leaf in closed.consts if hasattr(leaf, "dtype")]


def sampling_program(stage, sample, **changes):
    """The program of `Sampler`, on one sample."""
    sampler = sampling.Sampler.from_config(stage, sample, **changes)
    params = nn.meta.unbox(stage.abstract_params())
    inputs = stage.abstract_inputs(1)
    if sampler.negative is not None:
        inputs = stage.encode(["red left"], negatives=[sampler.negative])
    known = None
    if "method" in changes or "weight" in changes:
        frames, height, width, channels = sampler.video_shape
        y = jnp.zeros((1, frames, height // 2, width // 2, channels))
        known = sampling.Known(measurement=Downsample(space=2), y=y)
    numbers = jax.ShapeDtypeStruct((1,), jnp.uint32)
    return fingerprint(sampler.compiled.__wrapped__, params, {}, KEY, numbers, inputs, None, known)


@functools.cache
def built(system):
    config = make_config(system)
    return systems.build(config), config.sample


def light(stage):
    """The stage with a network that takes milliseconds to trace."""
    return dataclasses.replace(stage, network=tiny_stage.Network())


# Each: the field, two values, and what else is set. Both values must be heard.
SAMPLER = [
    ("sampler", "ddim", "heun", {}),
    ("steps", 4, 5, {}),
    ("grid", "time", "logsnr", {}),
    ("grid", "-8,0,inf", "-8,1,inf", {}),
    ("rho", 7.0, 5.0, {"grid": "karras"}),
    ("sigma_min", 0.01, 0.02, {"grid": "karras"}),
    ("sigma_max", 20.0, 30.0, {"grid": "logsnr"}),
    ("eta", 0.0, 0.5, {}),
    ("gamma", 0.3, 0.4, {"sampler": "ancestral"}),
    ("churn", 1.0, 2.0, {"sampler": "euler"}),
    ("churn_min", 0.05, 0.1, {"sampler": "euler", "churn": 1.0}),
    ("churn_max", 50.0, 40.0, {"sampler": "euler", "churn": 1.0}),
    ("churn_noise", 1.003, 1.1, {"sampler": "heun", "churn": 1.0}),
    ("corrector", 0.1, 0.2, {}),
    ("guidance", 1.0, 2.0, {}),
    ("guidance", 2.0, 3.0, {}),
    ("first_guidance", 1.0, 1.5, {}),
    ("temporal", 1.0, 1.2, {}),
    ("temporal", 1.2, 1.4, {}),
    ("oscillate_after", 0, 2, {}),
    ("oscillate_after", 2, 3, {}),
    ("guidance_start", 0.0, 0.5, {}),
    ("guidance_end", 0.5, 1.0, {}),
    ("threshold", "none", "static", {}),
    ("threshold", "static", "dynamic", {}),
    ("window", 0, 2, {}),
    ("window_overlap", 0, 1, {"window": 2, "num_frames": 6}),
    ("num_frames", 4, 6, {}),
    ("height", None, 8, {}),
    ("width", None, 8, {}),
    ("negative", None, "green left", {}),
    ("shared_noise", False, True, {}),
    ("method", "reconstruction", "projection", {}),
    ("method", "pigdm", "replacement", {}),
    ("weight", 1.0, 2.0, {"method": "pigdm"}),
]
ELSEWHERE = {
    "augmentation": "below: it needs a low-resolution video",
    "fps": "below: it needs a frame rate",
    "structure": "tests/systems/test_gen1.py: it needs a depth as a condition",
    "motion_bucket": "tests/systems/test_stable_video.py: it needs that number as a condition",
    "reuse": "tests/systems/test_video_dit_training.py: it needs a video transformer",
    "tile": "tests/stage/test_cascade.py: it needs a network of finite reach",
    "tile_overlap": "as tile",
    "remat": "below: it needs a network with blocks",
    "frozen": "tests/stage/test_sampler_inputs.py: it is an argument of the program",
    "batch_size": "tests/stage/test_sampler.py: it is how many samples a call has",
    "plan": "tests/parallel/test_sharding.py: it needs devices",
}


@pytest.mark.parametrize("field,one,other,fixed", SAMPLER, ids=lambda value: str(value)[:20])
def test_a_sampler_field_changes_the_program(field, one, other, fixed):
    stage = tiny_stage.STAGE
    fixed = {"steps": 4, "guidance": 2.0, **fixed}
    programs = [sampling_program(stage, {}, **{**fixed, field: v}) for v in (one, other)]
    assert programs[0] != programs[1]


def test_no_sampler_field_is_left_out():
    assert {field for field, *_ in SAMPLER} | ELSEWHERE.keys() == set(sampler_fields.FIELDS)


def test_rematerialisation_changes_the_program():
    stage, sample = built("vdm")
    none, full = (
        sampling_program(stage, sample, method="reconstruction", remat=v) for v in ("none", "full")
    )
    assert none != full


@pytest.mark.parametrize("field,one,other", [("augmentation", 0.0, 3.0), ("fps", 6.0, 12.0)])
def test_a_setting_of_a_condition_changes_the_program(field, one, other):
    stage, sample = built("imagen_video")
    conditions = tuple(
        dataclasses.replace(c, trained=()) if isinstance(c, FrameRate) else c  # any rate
        for c in stage.conditions
    )
    stage = light(dataclasses.replace(stage, conditions=conditions))
    programs = [sampling_program(stage, sample, **{field: v}) for v in (one, other)]
    assert programs[0] != programs[1]


# Fields of the update. Those of the loop are tested in tests/training.
UPDATE = [
    ("train.seed", 0, 1),
    ("train.optimizer", "adamw", "muon"),
    ("train.learning_rate", 1e-3, 2e-3),
    ("train.schedule", "constant", "cosine"),
    ("train.warmup_steps", 2, 3),
    ("train.beta1", 0.9, 0.8),
    ("train.beta2", 0.99, 0.9),
    ("train.weight_decay", 0.0, 0.1),
    ("train.moment_dtype", "float32", "bfloat16"),
    ("train.clip_norm", 1.0, 0.5),
    ("train.accumulate", 1, 2),
    ("train.ema_decay", 0.9, 0.8),
]
LOSS = [
    ("train.cond_dropout", 0.1, 0.2),
    ("train.cond_dropout", 0.0, 0.2),
    ("data.image_frames", 0, 2),
    ("model.dropout", 0.0, 0.1),
    ("model.dropout", 0.1, 0.5),
    ("model.dtype", "float32", "bfloat16"),
    ("model.attention_levels", (), (0,)),
    ("model.skips", "block", "level"),
    ("model.coordinates", False, True),
    ("model.output_skip", False, True),
    ("model.frame_positions", False, True),
    ("model.norm_groups", 2, 0),
    ("process.schedule", "cosine", "linear_beta"),
    ("process.logsnr_min", -20.0, -15.0),
    ("process.logsnr_max", 20.0, 15.0),
    ("process.logsnr_shift", 0.0, -1.0),
    ("process.prediction", "v", "eps"),
    ("process.loss", "v_mse", "truncated_snr"),
]
STAGE = [
    ("stage.fill", "repeat", "blend", {"stage.shape": (8, 8, 8), "stage.low_res": (4, 8, 8)}),
    ("stage.residual", 0.0, 0.1, {}),
    ("stage.residual", 0.1, 0.2, {}),
    ("stage.residual_of_contrast", 0.0, 0.5, {"stage.residual": 0.1}),
    (
        "stage.residual_of_acceleration",
        0.0,
        0.5,
        {
            "stage.residual": 0.1,
            "stage.fill": "blend",
            "stage.shape": (8, 8, 8),
            "stage.low_res": (4, 8, 8),
        },
    ),
    ("stage.max_augmentation", 1.0, 0.5, {}),
    ("stage.max_augmentation", 0.5, 0.25, {}),
    ("stage.crop", (), (8, 8), {}),
    ("stage.crop", (8, 8), (4, 8, 8), {}),
    ("stage.data_fps", 6.0, 12.0, {}),
    ("stage.frame_strides", (1,), (1, 2), {"stage.shape": (4, 16, 16), "stage.low_res": (4, 8, 8)}),
]


def update_program(config):
    """The program of one update of the smallest stage."""
    stage = tiny_stage.STAGE
    plan = sharding.make_plan(stage, {"data": 1}, jax.devices()[:1])
    tx = optimizer.make_optimizer(config.train, stage.abstract_params())
    update = step.make_train_step(stage, tx, config, plan)
    batch = stage.abstract_batch(config.train.batch_size)
    current = state.abstract_state(stage, tx, plan)
    return fingerprint(update.compiled.__wrapped__, current, batch, {})


def loss_program(config, stage):
    """The program of the loss."""
    batch = stage.abstract_batch(config.train.batch_size, config.data.image_frames)
    return fingerprint(stage.loss, nn.meta.unbox(stage.abstract_params()), batch, KEY)


@pytest.mark.parametrize("field,one,other", UPDATE, ids=lambda value: str(value)[:24])
def test_a_training_field_changes_the_update(field, one, other):
    one, other = (update_program(make_config("vdm", [(field, v)])) for v in (one, other))
    assert one != other


@pytest.mark.parametrize("field,one,other", LOSS, ids=lambda value: str(value)[:24])
def test_a_field_of_the_model_changes_the_loss(field, one, other):
    configs = [make_config("vdm", [(field, v)]) for v in (one, other)]
    stages = [systems.build(config) for config in configs]
    if not field.startswith("model."):
        stages = [light(stage) for stage in stages]
    one, other = map(loss_program, configs, stages)
    assert one != other


@pytest.mark.parametrize("field,one,other,fixed", STAGE, ids=lambda value: str(value)[:30])
def test_a_field_of_a_cascades_stage_changes_the_loss(field, one, other, fixed):
    changes = [*fixed.items(), ("data.image_frames", 0)]
    configs = [make_config("imagen_video", [*changes, (field, v)]) for v in (one, other)]
    stages = [light(systems.build(config)) for config in configs]
    one, other = map(loss_program, configs, stages)
    assert one != other


@pytest.mark.parametrize(
    "field,one,other",
    [
        ("stage.masks", ("first_frame",), ("inpaint",)),
        ("stage.train_new_only", True, False),
        ("model.temporal_depth", 1, 2),
    ],
)
def test_a_field_of_lumiere_changes_the_loss(field, one, other):
    configs = [make_config("lumiere", [(field, v)]) for v in (one, other)]
    stages = [systems.build(config) for config in configs]
    if field == "stage.train_new_only":
        shapes = [nn.meta.unbox(stage.abstract_params()) for stage in stages]
        trained = [stage.trained(tree) for stage, tree in zip(stages, shapes, strict=True)]
        assert len(jax.tree.leaves(trained[0])) < len(jax.tree.leaves(trained[1]))
    else:
        one, other = map(loss_program, configs, stages)
        assert one != other


@pytest.mark.parametrize("system", ["vdm", "imagen_video", "lumiere"])
def test_every_entry_of_a_condition_reaches_the_network(system):
    stage, _ = built(system)
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(0.3 * rng.normal(size=leaf.shape), leaf.dtype),
        nn.meta.unbox(stage.abstract_params()),
    )
    shapes = stage.cond_shapes(2, 0)
    cond = {name: jnp.ones(leaf.shape, leaf.dtype) for name, leaf in shapes.items()}
    z = jnp.asarray(rng.normal(size=(2, *stage.z_shape)), jnp.float32)
    raw = jax.jit(lambda cond: stage.raw_output(params, z, jnp.zeros(2), cond))
    usual = raw(cond)
    for name, value in cond.items():
        changed = raw({**cond, name: ~value if value.dtype == bool else value * 2})
        assert jnp.abs(changed - usual).max() > 1e-6, name


# The papers' values, field by field (VDM: Ho et al. 2022, tables 1 to 4 and appendix A).
PAPER = {
    "vdm/ucf101": {
        "model.channels": 256,
        "model.dropout": 0.1,
        "data.image_frames": 8,
        "train.steps": 60_000,
        "train.batch_size": 128,
        "train.learning_rate": 3e-4,
        "sample.steps": 256,
        "sample.gamma": 0.1,
    },
    "vdm/bair": {
        "model.channel_mult": (1, 2, 3, 4),
        "model.num_res_blocks": 3,
        "data.image_frames": 8,
        "train.steps": 660_000,
        "train.learning_rate": 2e-4,
        "sample.gamma": 0.0,
    },
    "vdm/kinetics600": {
        "model.channels": 256,
        "data.image_frames": 8,
        "train.steps": 220_000,
        "train.batch_size": 256,
        "sample.steps": 128,
        "sample.gamma": 0.0,
    },
    "vdm/t2v_small": {"model.channels": 128, "train.steps": 200_000, "data.image_frames": 8},
    "vdm/t2v_large": {"model.channels": 256, "train.steps": 700_000, "data.image_frames": 8},
    **{
        f"imagen_video/paper/{spec.name}": {
            "data.image_frames": 0 if spec.name == "ssr_1280x768" else 8,
            "process.prediction": "v",
            "process.schedule": "cosine",
            "sample.threshold": "dynamic",
            "sample.steps": 256 if spec.kind == "base" else 128,
            "sample.guidance": 15.0 if number < 4 else 5.0,
            "text.encoder": "t5_xxl",
        }
        for number, spec in enumerate(imagen_video.PAPER)
    },
}


@pytest.mark.parametrize("name", PAPER)
def test_a_paper_configuration_has_the_papers_values(name):
    fields = dict(config_lib.flatten(config_lib.load_config(name)))
    assert {field: fields[field] for field in PAPER[name]} == PAPER[name]


def test_imagen_video_oscillates_the_guidance_of_the_base_and_two_ssr_models():
    oscillating = [
        spec.name
        for spec in imagen_video.PAPER
        if config_lib.load_config(f"imagen_video/paper/{spec.name}").sample.oscillate_after
    ]
    assert oscillating == ["base_40x24", "ssr_80x48", "ssr_320x192"]
