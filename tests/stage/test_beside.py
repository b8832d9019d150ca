"""A stage whose parameters are some of its network's, beside a frozen base's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests import tiny_stage
from vdm_jax.stage.beside import Beside
from vdm_jax.stage.low_rank import BASE

OWN = "Dense_[12]/kernel"


@pytest.fixture(scope="module")
def stage():
    return Beside.split(tiny_stage.STAGE, OWN)


@pytest.fixture(scope="module")
def base():
    drawn = tiny_stage.STAGE.init(jax.random.key(0))
    return jax.tree.map(lambda leaf: leaf + 1.0, drawn)


def flat(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def test_its_parameters_are_those_that_match(stage):
    shapes = flat(jax.eval_shape(stage.init, jax.random.key(0)))
    assert set(shapes) == {"Dense_1/kernel", "Dense_2/kernel"}
    assert set(flat(stage.abstract_params())) == set(shapes)


def test_they_start_as_the_bases_and_new_ones_are_drawn(stage, base):
    lacking = {name: leaf for name, leaf in base.items() if name != "Dense_2"}
    found = flat(stage.start(jax.random.key(0), lacking))
    np.testing.assert_array_equal(found["Dense_1/kernel"], base["Dense_1"]["kernel"])
    drawn = flat(stage.init(jax.random.key(0)))
    np.testing.assert_array_equal(found["Dense_2/kernel"], drawn["Dense_2/kernel"])


def test_the_network_has_them_in_the_base(stage, base):
    own = jax.tree.map(lambda leaf: jnp.full(leaf.shape, 7.0), stage.init(jax.random.key(0)))
    found = flat(stage.network_params(own, {BASE: base}))
    assert found.keys() == flat(base).keys()
    for path, leaf in found.items():
        wanted = 7.0 if path in ("Dense_1/kernel", "Dense_2/kernel") else flat(base)[path]
        np.testing.assert_array_equal(leaf, jnp.broadcast_to(wanted, leaf.shape))


def test_what_cannot_be_is_refused(stage, base):
    with pytest.raises(ValueError, match="lacks 'base'.*it has: none"):
        stage.network_params(base, {})
    with pytest.raises(ValueError, match="own = 'nowhere': matches no parameter"):
        jax.eval_shape(Beside.split(tiny_stage.STAGE, "nowhere").init, jax.random.key(0))
