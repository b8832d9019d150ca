"""One update: EMA, accumulation, learning rate, refusal of what is not finite; fingerprints."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests import tiny_stage
from vdm_jax.models import layers
from vdm_jax.parallel import sharding
from vdm_jax.training import checkpoints, optimizer, state, step


class Quadratic:
    """A stage whose loss does not depend on the key: |w x - y|^2 over the batch."""

    def init(self, key):
        return {"w": jax.random.normal(key, (3, 2)), "b": jnp.zeros(2)}

    def abstract_params(self):
        return jax.tree.map(
            lambda leaf: layers.Named(value=leaf, names=(None,) * leaf.ndim, dtype=jnp.float32),
            jax.eval_shape(self.init, jax.random.key(0)),
        )

    def with_layout(self, layout):
        return self

    def trained(self, params):
        return params

    def loss(self, params, batch, key, frozen):
        error = batch["x"] @ params["w"] + params["b"] - batch["y"]
        return jnp.mean(error**2), {"error": jnp.mean(jnp.abs(error))}


@pytest.fixture(scope="module")
def batch():
    keys = jax.random.split(jax.random.key(1))
    return {"x": np.asarray(jax.random.normal(keys[0], (8, 3))), "y": np.ones((8, 2), np.float32)}


def prepare(stage, config):
    """(the compiled update, a new state) of `stage` on one device."""
    tx = optimizer.make_optimizer(config.train)
    plan = sharding.make_plan(stage, {"data": 1}, jax.devices()[:1])
    update = step.make_train_step(stage, tx, config, plan)
    return update, state.create_state(stage, tx, config.train.seed, plan)


def one_update(config, batch, updates=1):
    update, current = prepare(Quadratic(), config)
    for _ in range(updates):
        current, metrics = update(current, batch)
    return current, metrics


def test_accumulation_equals_the_whole_batch(make_config, batch):
    whole, whole_metrics = one_update(make_config(accumulate=1), batch, updates=3)
    split, split_metrics = one_update(make_config(accumulate=2), batch, updates=3)
    for name in ("w", "b"):
        np.testing.assert_allclose(split.params[name], whole.params[name], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(split.ema[name], whole.ema[name], rtol=1e-5, atol=1e-6)
    for name in whole_metrics:
        np.testing.assert_allclose(split_metrics[name], whole_metrics[name], rtol=1e-5)


def test_ema_follows_its_formula(make_config, batch):
    update, current = prepare(Quadratic(), make_config(ema_decay=0.15, batch_size=8))
    average = np.asarray(current.params["w"])
    decays = []
    for done in range(4):
        current, metrics = update(current, batch)
        decay = min(0.15, (1 + done) / (10 + done))
        average = decay * average + (1 - decay) * np.asarray(current.params["w"])
        np.testing.assert_allclose(current.ema["w"], average, rtol=1e-5)
        decays.append(float(metrics["ema_decay"]))
    np.testing.assert_allclose(decays, [0.1, 0.15, 0.15, 0.15], rtol=1e-6)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_an_update_that_is_not_finite_changes_no_weight(
    bad, make_config, batch, assert_trees_equal
):
    class Bad(Quadratic):
        def loss(self, params, batch, key, frozen):
            value, metrics = super().loss(params, batch, key, frozen)
            if bad == "loss":
                return value + jnp.where(batch["poison"].any(), jnp.nan, 0.0), metrics
            # A finite loss with a gradient that is not: the square root at zero.
            zero = jnp.where(batch["poison"].any(), 0.0, 1.0) * params["b"][0] ** 2
            return value + jnp.sqrt(zero), metrics

    config = make_config(batch_size=8, warmup_steps=4, steps=14)
    update, before = prepare(Bad(), config)
    kept = jax.tree.map(np.array, before)
    after, metrics = update(before, {**batch, "poison": np.ones(8, bool)})
    assert metrics["finite"] == 0
    if bad == "gradient":
        assert np.isfinite(metrics["loss"])
    # It is counted, so that the next update has another key and the next batch.
    assert (after.step, after.skipped, metrics["skipped"]) == (1, 1, 1)
    for name in ("params", "ema", "opt_state"):
        assert_trees_equal(getattr(after, name), jax.tree.map(jnp.asarray, getattr(kept, name)))
    # Nor does it count for the optimiser, whose learning rate is the one that is logged.
    _, metrics = update(after, {**batch, "poison": np.zeros(8, bool)})
    rate = optimizer.make_schedule(config.train)(0)
    np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)


def test_keys_are_of_seed_step_and_purpose():
    keys = {
        tuple(jax.random.key_data(state.derive_key(seed, update, purpose)).tolist())
        for seed in (0, 1)
        for update in (0, 1, 2)
        for purpose in (state.INIT, state.LOSS, state.SAMPLE)
    }
    assert len(keys) == 18


def test_learning_rate(make_config):
    rate = optimizer.make_schedule(make_config(warmup_steps=4, steps=14).train)
    np.testing.assert_allclose(
        [rate(s) for s in range(6)], [0.0025, 0.005, 0.0075, 0.01, 0.01, 0.01], rtol=1e-6
    )
    cosine = optimizer.make_schedule(make_config(warmup_steps=4, steps=14, schedule="cosine").train)
    np.testing.assert_allclose(
        [cosine(s) for s in (3, 4, 9, 14)], [0.01, 0.01, 0.005, 0.0], rtol=1e-5, atol=1e-9
    )
    assert optimizer.make_schedule(make_config(warmup_steps=0).train)(0) == pytest.approx(0.01)
    with pytest.raises(ValueError, match="train.warmup_steps = 9: must be smaller"):
        optimizer.make_schedule(make_config(warmup_steps=9, steps=9, schedule="cosine").train)


def test_decay_spares_biases_and_clipping_bounds_the_gradient(make_config):
    params = {"w": jnp.ones((2, 2)), "b": jnp.ones(2)}
    config = make_config(weight_decay=0.5, warmup_steps=0, clip_norm=0.0)
    tx = optimizer.make_optimizer(config.train)
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    assert np.all(np.asarray(updates["w"]) < 0) and np.all(np.asarray(updates["b"]) == 0)

    clipped = optimizer.make_optimizer(make_config(clip_norm=0.1).train)
    grads = {"w": jnp.full((2, 2), 100.0), "b": jnp.zeros(2)}
    _, opt_state = clipped.update(grads, clipped.init(params), params)
    mu = optax.tree_utils.tree_get(opt_state, "mu")
    assert optax.global_norm(mu) == pytest.approx(0.1 * (1 - 0.9), rel=1e-4)


@pytest.mark.parametrize("largest", [0.1, 5.0, 100.0])
def test_gradients_are_clipped_by_the_norm_of_all(largest):
    grads = {"a": jnp.arange(6.0).reshape(2, 3), "b": jnp.full(4, -2.0, jnp.bfloat16)}
    ours, theirs = optimizer.clip_by_norm(largest), optax.clip_by_global_norm(largest)
    found, wanted = (tx.update(grads, tx.init(grads))[0] for tx in (ours, theirs))
    for name, leaf in found.items():
        assert leaf.dtype == grads[name].dtype
        np.testing.assert_allclose(leaf, wanted[name], rtol=1e-2 if name == "b" else 1e-6)
    zero = jax.tree.map(jnp.zeros_like, grads)
    assert all(jnp.all(leaf == 0) for leaf in ours.update(zero, optax.EmptyState())[0].values())


def test_fingerprint_sees_every_change():
    tree = {
        "a": jnp.arange(12.0).reshape(3, 4),
        "b": jnp.arange(5, dtype=jnp.bfloat16),
        "c": jnp.zeros((), jnp.int32),
        "d": jnp.array([True, False]),
    }
    reference = checkpoints.fingerprint(tree)
    assert set(reference) == set(tree)
    assert checkpoints.fingerprint(jax.tree.map(jnp.copy, tree)) == reference
    changed = {
        "a": tree["a"].at[1, 2].set(np.nextafter(np.float32(6), np.float32(7))),
        "b": tree["b"][::-1],
        "c": tree["c"] + 1,
        "d": ~tree["d"],
    }
    for name, value in changed.items():
        assert checkpoints.fingerprint({**tree, name: value})[name] != reference[name], name


def test_random_bits_by_kernel_are_not_unrolled_for_a_gpu():
    def lowered():
        draw = jax.jit(lambda key: jax.random.normal(key, (3,)))
        return draw.trace(jax.random.key(0)).lower(lowering_platforms=("cuda",)).as_text()

    before = lowered()
    assert "threefry2x32_ffi" not in before and before.count("stablehlo.xor") > 20
    with state.random_bits_by_kernel():
        inside = lowered()
    assert "threefry2x32_ffi" in inside and inside.count("stablehlo.xor") < 3
    assert lowered() == before


def test_the_update_is_called_and_lowered_with_what_is_frozen():
    seen = []

    class Compiled:
        def __call__(self, old, *arguments):
            seen.append((old, *arguments))
            return old, {}

        lower = __call__

    update = step.TrainStep(compiled=Compiled(), frozen={"teacher": 3})
    old = object.__new__(state.TrainState)
    update(old, 2)
    update.lower(old, 2)
    assert seen == [(old, 2, {"teacher": 3})] * 2


@pytest.mark.parametrize(
    ("names", "inputs", "outputs"),
    [
        ((layers.IN, layers.OUT), (0,), (1,)),
        ((None, None, layers.IN, layers.OUT), (0, 1, 2), (3,)),
        ((layers.IN, layers.HEADS, layers.HEAD_DIM), (0,), (1, 2)),
        ((layers.HEADS, layers.HEAD_DIM, layers.OUT), (0, 1), (2,)),
        ((layers.STACKED, layers.IN, layers.OUT), (1,), (2,)),
    ],
)
def test_muon_knows_the_matrix_of_a_kernel(names, inputs, outputs):
    assert optimizer.matrix_axes(names) == (inputs, outputs)


@pytest.mark.parametrize(
    "names",
    [
        (layers.OUT,),
        (layers.HEADS, layers.HEAD_DIM),
        (layers.STACKED, layers.OUT),
        (layers.VOCAB, layers.OUT),
    ],
)
def test_muon_leaves_biases_and_embeddings_to_adam(names):
    assert optimizer.matrix_axes(names) is None


def test_muon_orthogonalises_the_update_of_each_matrix(make_config):
    """Against the singular vectors of the gradient, which at the first update is the momentum."""
    train = make_config(optimizer="muon", warmup_steps=0, clip_norm=0.0, learning_rate=0.01).train
    key = jax.random.key(0)
    grads = {
        "stacked": jax.random.normal(key, (2, 6, 2, 4)),
        "bias": jnp.array([3.0, -1.0]),
        "frozen": None,
    }
    names = {
        "stacked": (layers.STACKED, layers.IN, layers.HEADS, layers.HEAD_DIM),
        "bias": (layers.OUT,),
    }
    abstract = {
        name: layers.Named(value=grads[name], names=names[name], dtype=jnp.float32)
        for name in names
    }
    with pytest.raises(ValueError, match="train.optimizer = 'muon'"):
        optimizer.make_optimizer(train)
    tx = optimizer.make_optimizer(train, abstract)
    params = jax.tree.map(jnp.zeros_like, grads)
    updates, _ = tx.update(grads, tx.init(params), params)
    for gradient, update in zip(grads["stacked"], updates["stacked"], strict=True):
        gradient, update = (np.asarray(x).reshape(6, 8) for x in (gradient, update))
        left, _, right = np.linalg.svd(gradient, full_matrices=False)
        expected = -0.01 * 0.2 * np.sqrt(8) * left @ right
        # Five iterations bring singular values to within .7 and 1.2, not to 1.
        scale = np.linalg.svd(update, compute_uv=False) / np.linalg.svd(expected, compute_uv=False)
        assert np.all((scale[:6] > 0.6) & (scale[:6] < 1.3))
        cosine = np.vdot(update, expected) / np.linalg.norm(update) / np.linalg.norm(expected)
        assert cosine > 0.97
    adam = optax.nadam(0.01, b1=train.beta1, b2=train.beta2)
    expected, _ = adam.update(grads["bias"], adam.init(params["bias"]))
    np.testing.assert_allclose(updates["bias"], expected, rtol=1e-6)
    assert updates["frozen"] is None


def test_muon_keeps_one_moment_of_a_matrix_beside_it(make_config):
    stage = tiny_stage.STAGE
    plan = sharding.make_plan(stage, {"data": 1}, jax.devices()[:1])
    tx = optimizer.make_optimizer(make_config(optimizer="muon").train, stage.abstract_params())
    abstract = state.abstract_state(stage, tx, plan)
    count = state.count_parameters
    assert count(abstract.params) < count(abstract.opt_state) < 1.2 * count(abstract.params)
