"""One update of a stage, as one compiled function."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jaxtyping import Array, PyTree

from vdm_jax.parallel import host_memory, sharding
from vdm_jax.training import optimizer, state

Metrics = dict[str, Array]


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainStep:
    """One compiled update: `(state, batch) -> (state, metrics)`. The state's memory is donated.

    Attributes:
      compiled: the jitted `(state, batch, frozen) -> (state, metrics)`.
      frozen: parameters that the loss uses, by name. They are an argument and no constant of the
        program: they are large, and lie on many devices.
    """

    compiled: Callable[..., tuple[state.TrainState, Metrics]]
    frozen: Mapping[str, PyTree]

    def __call__(self, old: state.TrainState, batch: PyTree) -> tuple[state.TrainState, Metrics]:
        return self.compiled(old, batch, self.frozen)

    def lower(self, old: state.TrainState, batch: PyTree) -> Any:
        """The update lowered for shapes (`jax.jit(...).lower`)."""
        return self.compiled.lower(old, batch, self.frozen)


def make_train_step(
    stage,
    tx: optax.GradientTransformation,
    config,
    plan: sharding.Plan,
    frozen: Mapping[str, sharding.Frozen] | None = None,
) -> TrainStep:
    """The update of a stage, not compiled yet.

    frozen: by name, what `stage.loss(params, batch, key, frozen)` uses beside what it trains.

    batch: a tree of arrays with a leading batch axis of train.batch_size, placed as `plan.batch`.
    It is split into train.accumulate microbatches, one after the other, their gradients averaged.
    What the stage does not train (`stage.trained`) is part of no gradient and stays as it is.
    Keys derive from (train.seed, state.step). Metrics are scalars: the stage's own, averaged, and
    `loss`, `grad_norm` (before clipping), `learning_rate`, `ema_decay`, `finite`, `skipped`.

    A loss or gradient that is not finite leaves parameters, moving average and optimiser as they
    were and is counted (`finite` = 0, `state.skipped`): whoever runs the step decides whether to go
    on, and no wrong weight has been made.

    Reads config.train.{seed, batch_size, accumulate, ema_decay} and what the learning rate needs.
    Raises MeshError where the batch cannot be cut as the mesh asks.
    """
    train = config.train
    plan.check_batch_size("train.batch_size", train.batch_size)
    plan.check_batch_size(
        "train.batch_size / train.accumulate", train.batch_size // train.accumulate
    )
    schedule = optimizer.make_schedule(train)
    stage = stage.with_layout(plan.layout())

    frozen = dict(frozen or {})
    stored = {name: part.params for name, part in frozen.items()}

    def stage_loss(
        params: PyTree, batch: PyTree, key: jax.Array, fixed: Mapping[str, PyTree]
    ) -> tuple[Array, Metrics]:
        here = host_memory.on_device(fixed, stored)
        gathered = {name: part.plan.gather(here[name]) for name, part in frozen.items()}
        return stage.loss(plan.gather(params), batch, key, gathered)

    def train_step(
        old: state.TrainState, batch: PyTree, fixed: Mapping[str, PyTree]
    ) -> tuple[state.TrainState, Metrics]:
        def trained_loss(trained: PyTree, batch: PyTree, key: jax.Array) -> tuple[Array, Metrics]:
            return stage_loss(state.merge(trained, old.params), batch, key, fixed)

        key = state.derive_key(train.seed, old.step, state.LOSS)
        trained = stage.trained(old.params)
        grads, metrics = _gradients(trained_loss, trained, batch, key, train.accumulate)
        grad_norm = optax.global_norm(grads)
        # One bad gradient makes the norm not finite, so this sees every leaf.
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)
        decay = state.ema_decay(train.ema_decay, old.step)
        new = _updated(stage, tx, old, grads, decay, finite)
        metrics = {
            **metrics,
            "grad_norm": grad_norm,
            # The optimiser counts the updates that were applied.
            "learning_rate": jnp.asarray(schedule(old.step - old.skipped), jnp.float32),
            "ema_decay": decay,
            "finite": finite.astype(jnp.float32),
            "skipped": new.skipped,
        }
        return new, metrics

    places = state.state_shardings(stage, tx, plan)
    compiled = jax.jit(
        train_step,
        donate_argnums=0,
        in_shardings=(places, plan.batch, {n: part.plan.params for n, part in frozen.items()}),
        out_shardings=(places, plan.everywhere),
        compiler_options=sharding.compiler_options(plan.mesh),
    )
    return TrainStep(compiled=compiled, frozen=stored)


def _gradients(
    loss: Callable[[PyTree, PyTree, jax.Array], tuple[Array, Metrics]],
    trained: PyTree,
    batch: PyTree,
    key: jax.Array,
    accumulate: int,
) -> tuple[PyTree, Metrics]:
    """Gradients of `loss(trained, batch, key)`, averaged over `accumulate` microbatches, and its
    metrics with the loss among them."""
    value_and_grad = jax.value_and_grad(loss, has_aux=True)
    if accumulate == 1:
        (value, metrics), grads = value_and_grad(trained, batch, key)
        return grads, {**metrics, "loss": value}

    # Every device has its share of each microbatch: nothing moves.
    batch = jax.tree.map(lambda leaf: rearrange(leaf, "(b a) ... -> a b ...", a=accumulate), batch)

    def add(total: PyTree, inputs: tuple[PyTree, jax.Array]) -> tuple[PyTree, Metrics]:
        microbatch, index = inputs
        (value, metrics), grads = value_and_grad(
            trained, microbatch, jax.random.fold_in(key, index)
        )
        return jax.tree.map(jnp.add, total, grads), {**metrics, "loss": value}

    zeros = jax.tree.map(jnp.zeros_like, trained)
    total, metrics = jax.lax.scan(add, zeros, (batch, jnp.arange(accumulate)))
    grads = jax.tree.map(lambda leaf: leaf / accumulate, total)
    return grads, jax.tree.map(jnp.mean, metrics)


def _updated(
    stage,
    tx: optax.GradientTransformation,
    old: state.TrainState,
    grads: PyTree,
    decay: Array,
    finite: Array,
) -> state.TrainState:
    """The state after one update, which changes nothing but the counts where it is not `finite`."""
    before, average = stage.trained(old.params), stage.trained(old.ema)
    updates, opt_state = tx.update(grads, old.opt_state, before)
    after = optax.apply_updates(before, updates)
    kept = {"params": before, "ema": average, "opt_state": old.opt_state}
    changed = {
        "params": after,
        "ema": state.update_ema(average, after, decay),
        "opt_state": opt_state,
    }
    taken = jax.tree.map(lambda new, same: jnp.where(finite, new, same), changed, kept)
    return state.TrainState(
        step=old.step + 1,
        skipped=old.skipped + 1 - finite,
        params=state.merge(taken["params"], old.params),
        ema=state.merge(taken["ema"], old.ema),
        opt_state=taken["opt_state"],
    )


def check_batch(batch: PyTree, batch_size: int) -> None:
    """Raises ValueError unless every array of `batch` has `batch_size` examples.

    batch_size: of this process.
    """
    wrong = {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape
        for path, leaf in jax.tree_util.tree_leaves_with_path(batch)
        if leaf.shape[:1] != (batch_size,)
    }
    if wrong:
        raise ValueError(
            f"train.batch_size = {batch_size}, but the data pipeline gave "
            + ", ".join(f"{name} {shape}" for name, shape in wrong.items())
        )
