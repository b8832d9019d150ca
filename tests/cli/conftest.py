"""The configuration that the command lines are tested with, and a model of it."""

import jax
import numpy as np
import pytest

from tests import cascades, drawn, tiny
from vdm_jax import config as config_lib
from vdm_jax import systems
from vdm_jax.pipelines import model as pretrained
from vdm_jax.systems import imagen_video


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


@pytest.fixture(scope="session")
def ssr_file(tmp_path_factory):
    """A stage that refines 8 frames of 8 x 12 at 6 frames a second to 16 x 24, as a file."""
    cascade = imagen_video.specs(("base", "base", 8, 8, 12, 6.0), ("ssr", "ssr", 8, 16, 24, 6.0))
    config = imagen_video.stage_config(cascade, "ssr")
    config.model.update(cascades.LIGHT)
    config.text.encoder = "none"
    config.train.cond_dropout = 0.0
    config.sample.update(
        steps=3, guidance=1.0, threshold="static", sampler="ddim", augmentation=0.0
    )
    params = drawn.params(systems.build(config))
    return pretrained.save_model(tmp_path_factory.mktemp("ssr") / "ssr.safetensors", params, config)
