"""The cascades that ship: every stage is there, and is the one that its configuration describes."""

from pathlib import Path

import chex
import pytest

from vdm_jax import config as config_lib
from vdm_jax import pretrained

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("system", ["imagen_video", "lumiere"])
def test_a_cascade_that_ships_is_that_of_the_configurations(system):
    configs = CONFIGS / system / "tiny"
    stages = config_lib.load_config(configs / "cascade.py").stages
    folder = f"{system}_tiny/"
    shipped = [name for name in pretrained.shipped_names() if name.startswith(folder)]
    assert sorted(shipped) == sorted(folder + name for name in stages)
    for name in stages:
        model = pretrained.load(folder + name)
        config = config_lib.load_config(configs / f"{name}.py")
        for section in ("stage", "process", "sample"):
            assert model.config[section] == config[section], (name, section)
        # What a run adds are the words of its data.
        assert model.config.model == config.model
        assert model.config.text.encoder == config.text.encoder
        chex.assert_tree_all_finite(model.params)
