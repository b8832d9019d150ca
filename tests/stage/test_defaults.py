"""The defaults of the parts of a stage and of a sampler: what a part does that is not asked to."""

import dataclasses

import pytest

from vdm_jax import stage as stage_rules
from vdm_jax.stage import guidance, refinement, sampler, sampler_fields, sampler_program, window
from vdm_jax.stage.conditions import prompt, scalar, video
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View
from vdm_jax.systems.imagen_video import Spec

DEFAULTS = {
    guidance.ClassifierFree: {
        "scale": 1.0,
        "oscillate_after": 0,
        "first": None,
        "start": 0.0,
        "end": 1.0,
    },
    guidance.DynamicThreshold: {"percentile": 0.995},
    guidance.Nested: {},
    guidance.Tiles: {},
    guidance.Windows: {},
    prompt.Text: {"drop": 0.1},
    prompt.Label: {"drop": 0.1},
    scalar.FrameRate: {"trained": ()},
    scalar.GuidanceScale: {"trained": None},
    video.LowResVideo: {
        "z_shape": None,
        "fill": "repeat",
        "max_augmentation": 1.0,
        "refinement": None,
    },
    video.MaskedVideo: {"z_shape": None},
    refinement.Plain: {},
    refinement.Refinement: {"fill": "repeat", "acceleration": 0.0, "contrast": 0.0},
    View: {"data_shape": None, "data_fps": 0.0, "frame_strides": (), "crop": (), "part": False},
    window.Reading: {"strides": (), "data_fps": 0.0, "reach": window.AT_THE_PLACE},
    Stage: {
        "conditions": (),
        "parametrisation": refinement.Plain(),
        "train_only": "",
        "new": "",
        "wider": "",
    },
    sampler.Sampler: {
        "rule": sampler.samplers.DDIM(),
        "grid": sampler.grids.Spaced(),
        "guidance": (),
        "threshold": guidance.StaticThreshold(),
        "method": sampler.conditional.ByReconstruction(),
        "negative": None,
        "noise": sampler.samplers.FirstNoise(),
        "batch_size": 16,
        "num_frames": None,
        "height": None,
        "width": None,
        "remat": "none",
        "plan": None,
    },
    Spec: {"parameters": 0.0},
}


@pytest.mark.parametrize("part", DEFAULTS, ids=lambda part: part.__name__)
def test_defaults(part):
    found = {
        field.name: field.default
        for field in dataclasses.fields(part)
        if field.default is not dataclasses.MISSING
    }
    assert found == DEFAULTS[part]


def test_constants():
    assert window.Reach() == (1, 0, 0) and (window.Reach(),) * 3 == window.AT_THE_PLACE
    assert {name: type(part) for name, part in guidance.THRESHOLDS.items()} == {
        "none": type(None),
        "static": guidance.StaticThreshold,
        "dynamic": guidance.DynamicThreshold,
    }
    assert (refinement.ACCELERATION_SIDE, refinement.CONTRAST_SIDE) == (7, 5)
    assert sampler_program.PREVIEWS == 8


def test_the_section_of_a_sampler():
    section = sampler_fields.default_section()
    unset = {*sampler_fields.RULE_FIELDS, *sampler_fields.GRID_FIELDS}
    assert {name: value for name, value in section.items() if name not in unset} == {
        "sampler": "ancestral",
        "steps": 256,
        "guidance": 1.0,
        "oscillate_after": 0,
        "grid": "time",
        "corrector": 0.0,
        "threshold": "static",
        "augmentation": 0.0,
        "tile": 0,
        "tile_overlap": 0,
        "window": 0,
        "window_overlap": 0,
        "batch_size": 16,
        "shared_noise": False,
    }
    assert {section[name] for name in unset} == {None}


# A value inside of what a field may be, and one outside.
ALLOWED = {
    "text.max_length": (1, 0),
    "text.vocabulary_size": (1, 0),
    "sample.steps": (1, 0),
    "sample.eta": (1.0, 1.1),
    "sample.gamma": (1.0, 1.1),
    "sample.rho": (0.1, 0.0),
    "sample.sigma_min": (0.1, 0.0),
    "sample.sigma_max": (0.1, 0.0),
    "sample.churn": (0.0, -0.1),
    "sample.churn_min": (0.0, -0.1),
    "sample.churn_max": (0.0, -0.1),
    "sample.churn_noise": (0.0, -0.1),
    "sample.corrector": (1.9, 2.0),
    "sample.batch_size": (1, 0),
}


def test_what_fields_may_be():
    assert stage_rules.RULES.keys() == ALLOWED.keys()
    for name, (inside, outside) in ALLOWED.items():
        rule = stage_rules.RULES[name]
        assert rule.allows(inside) and not rule.allows(outside), name
        assert not rule.allows(-1), name
