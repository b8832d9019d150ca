"""A stage whose parameters are low-rank changes of a frozen base's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from tests import tiny_stage
from vdm_jax.parallel import sharding
from vdm_jax.stage.low_rank import BASE, LowRank
from vdm_jax.stage.sampler import Sampler
from vdm_jax.training import loop, optimizer, step

TARGETS = r"Dense_[12]/"
adapt = functools.partial(LowRank.adapt, tiny_stage.STAGE, rank=2, alpha=3.0)


@pytest.fixture(scope="module")
def low_rank():
    return adapt(targets=TARGETS)


@pytest.fixture(scope="module")
def base():
    return tiny_stage.STAGE.init(jax.random.key(0))


def drawn(stage):
    """Parameters whose B are not zero."""
    params = stage.init(jax.random.key(1))
    return jax.tree.map(lambda leaf: leaf + 0.1 * jnp.arange(leaf.size).reshape(leaf.shape), params)


def test_its_parameters_are_a_and_b_of_the_targets(low_rank):
    shapes = traverse_util.flatten_dict(jax.eval_shape(low_rank.init, jax.random.key(0)), sep="/")
    assert {path: leaf.shape for path, leaf in shapes.items()} == {
        "Dense_1/kernel/A": (3, 2),
        "Dense_1/kernel/B": (2, 8),
        "Dense_2/kernel/A": (8, 2),
        "Dense_2/kernel/B": (2, 3),
    }


def test_the_network_has_the_base_plus_the_products(low_rank, base):
    params = drawn(low_rank)
    found = low_rank.network_params(params, {BASE: base})
    for name in ("Dense_1", "Dense_2"):
        a, b = params[name]["kernel"]["A"], params[name]["kernel"]["B"]
        wanted = base[name]["kernel"] + 1.5 * (np.asarray(a) @ np.asarray(b))
        np.testing.assert_allclose(found[name]["kernel"], wanted, rtol=1e-6)
        np.testing.assert_array_equal(found[name]["bias"], base[name]["bias"])
    np.testing.assert_array_equal(found["Dense_0"]["kernel"], base["Dense_0"]["kernel"])


def test_it_starts_as_its_base(low_rank, base, assert_trees_equal):
    params = low_rank.init(jax.random.key(1))
    assert all(np.any(pair[0]) for pair in low_rank.pairs(params).values())
    assert_trees_equal(low_rank.network_params(params, {BASE: base}), base)


@pytest.mark.parametrize(
    "fields,message",
    [
        ({"targets": "attention"}, r"train.lora.targets = 'attention': matches no kernel; there"),
        ({"targets": "("}, r"train.lora.targets = '\(': is no regular"),
        ({"rank": 0}, "train.lora.rank = 0"),
        ({"alpha": -1.0}, "train.lora.alpha = -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        adapt(**fields).abstract_params()


def test_a_missing_base_is_named(low_rank):
    with pytest.raises(ValueError, match="frozen: lacks 'base'"):
        low_rank.denoiser(drawn(low_rank), {"autoencoder": {}})


@pytest.fixture(scope="module")
def trained(low_rank, base, make_config, make_dataset, make_plan, tmp_path_factory):
    """A function from numbers of updates, one a run in the same workdir, to the last result."""
    plan, config = make_plan(low_rank), make_config(steps=4)
    frozen = {BASE: sharding.Frozen(params=base, plan=make_plan(tiny_stage.STAGE))}
    tx = optimizer.make_optimizer(config.train)
    train_step = step.make_train_step(low_rank, tx, config, plan, frozen)

    @functools.cache
    def run(*updates):
        workdir = tmp_path_factory.mktemp("run")
        for steps in updates:
            config = make_config(steps=steps)
            result = loop.train(
                low_rank, config, workdir, make_dataset(), frozen=frozen, train_step=train_step
            )
        return result

    return run


def test_training_moves_a_and_b_and_nothing_else(low_rank, base, trained):
    before = jax.tree.map(np.array, base)
    state = trained(4).state
    start = low_rank.init(jax.random.fold_in(jax.random.key(3), 0))
    shapes = jax.tree.map(jnp.shape, start)
    assert jax.tree.map(jnp.shape, state.params) == shapes
    assert jax.tree.map(jnp.shape, state.ema) == shapes
    moments = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim]
    assert sorted(leaf.shape for leaf in moments) == sorted(
        2 * [leaf.shape for leaf in jax.tree.leaves(start)]
    )
    for a, b in low_rank.pairs(state.params).values():
        assert np.any(np.asarray(b)) and np.all(np.isfinite(a))
    for one, other in zip(jax.tree.leaves(before), jax.tree.leaves(base), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_resumed_run_is_bit_identical(trained, assert_trees_equal):
    assert_trees_equal(trained(2, 4).state, trained(4).state)


def test_samples_are_those_of_the_merged_parameters(low_rank, base, trained):
    params = trained(4).state.ema

    def sample(stage, params, frozen):
        sampler = Sampler.from_config(
            stage, {"sampler": "ddim", "steps": 2}, batch_size=2, frozen=frozen
        )
        return next(sampler.stream(params, jax.random.key(0), ["red left"])).astype(int)

    adapted = sample(low_rank, params, {BASE: base})
    merged = sample(tiny_stage.STAGE, low_rank.network_params(params, {BASE: base}), {})
    assert np.abs(adapted - merged).max() <= 1
    assert np.abs(adapted - sample(tiny_stage.STAGE, base, {})).max() > 1


def test_a_base_that_lies_in_parts_is_changed_where_it_lies(low_rank, base):
    """Under jit, with the boxes that gather parameters on a mesh."""
    plans = [
        sharding.make_plan(stage, {"data": 1, "min_fsdp_size": 1}, jax.devices()[:1])
        for stage in (low_rank, low_rank.base)
    ]
    boxed = [
        sharding._Stored(leaf, plans[0].everywhere, plans[0].everywhere, jnp.float32)
        for leaf in jax.tree.leaves(base)
    ]
    held = jax.tree.unflatten(jax.tree.structure(base), boxed)
    params = drawn(low_rank)
    found = low_rank.network_params(params, {BASE: held})
    plain = low_rank.network_params(params, {BASE: base})
    leaves = jax.tree.leaves(found, is_leaf=lambda leaf: isinstance(leaf, sharding._Stored))
    for box, wanted in zip(leaves, jax.tree.leaves(plain), strict=True):
        assert isinstance(box, sharding._Stored)
        np.testing.assert_array_equal(box.value, wanted)
