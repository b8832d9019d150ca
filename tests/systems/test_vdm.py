"""VDM's configurations: each describes a network that can be built, as large as it says."""

import math
from pathlib import Path

import flax.linen as nn
import jax
import pytest

from vdm_jax import config as config_lib
from vdm_jax import systems

CONFIGS = Path(__file__).parents[2] / "configs"

# Parameters in millions, from shapes; they change only when the network does.
MILLIONS = {
    "bair": 151.36,
    "kinetics600": 1168.4,
    "moving_shapes": 1.32,
    "own_videos": 1.595,
    "t2v_large": 1304.6,
    "t2v_5b": 5155.97,
    "t2v_small": 375.47,
    "ucf101": 1168.4,
}


@pytest.mark.parametrize(
    "name",
    # Those of distillations have no model of their own (test_distillation.py).
    sorted(p.stem for p in (CONFIGS / "vdm").glob("*.py") if not p.stem.endswith("_distill")),
)
def test_configurations_build(name):
    stage = systems.build(config_lib.load_config(CONFIGS / "vdm" / f"{name}.py"))
    shapes = nn.meta.unbox(stage.abstract_params())
    count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
    assert count / 1e6 == pytest.approx(MILLIONS[name], rel=0.01)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("system", "vmd", "system = 'vmd': allowed are vdm"),
        ("model.dtype", "float8", "model.dtype = 'float8': allowed are float32, bfloat16"),
        ("text.encoder", "gpt", "text.encoder = 'gpt': allowed are none, words, minilm"),
        ("process.schedule", "linear", "process.schedule='linear' is unknown"),
        ("process.prediction", "w", "prediction='w' is unknown"),
    ],
)
def test_values_that_are_not_allowed(field, value, message):
    config = config_lib.load_config(CONFIGS / "vdm" / "moving_shapes.py", {field: value})
    with pytest.raises(ValueError, match=message):
        systems.build(config)
