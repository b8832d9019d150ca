"""The configuration that the command lines are tested with, and a model of it."""

import jax
import numpy as np
import pytest

from tests import tiny
from vdm_jax import config as config_lib
from vdm_jax import systems
from vdm_jax.pipelines import model as pretrained


@pytest.fixture(scope="session")
def config_file(tmp_path_factory):
    return tiny.write_config(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def model_file(config_file, tmp_path_factory):
    """A model whose output is not zero, as a file."""
    overrides = {"text.vocabulary": "a,red,blue,square", "sample.guidance": "2.0"}
    config = config_lib.load_config(config_file, overrides)
    params = systems.build(config).init(jax.random.key(0))
    random = np.random.default_rng(0)
    params = jax.tree.map(
        lambda leaf: leaf + 0.05 * random.normal(size=leaf.shape).astype(np.float32), params
    )
    path = tmp_path_factory.mktemp("model") / "model.safetensors"
    return pretrained.save_model(path, params, config)
