"""One update of a stage, as one compiled function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from einops import rearrange
from jaxtyping import Array, PyTree

from vdm_jax.training import optimizer, state

Metrics = dict[str, Array]
TrainStep = Callable[[state.TrainState, PyTree], tuple[state.TrainState, Metrics]]


def make_train_step(stage, tx: optax.GradientTransformation, config) -> TrainStep:
    """Compiles `(state, batch) -> (state, metrics)`; the state's memory is donated.

    batch: a tree of arrays with a leading batch axis of train.batch_size, which is split into
    train.accumulate microbatches, one after the other, their gradients averaged. Keys derive from
    (train.seed, state.step). Metrics are scalars: the stage's own, averaged, and `loss`,
    `grad_norm` (before clipping), `learning_rate`, `ema_decay`, `finite`.

    A loss or gradient that is not finite leaves the whole state as it was, the step count too
    (`finite` = 0): whoever runs the step decides, and no wrong weight has been made.

    Reads config.train.{seed, accumulate, ema_decay} and what the learning rate needs.
    """
    train = config.train
    schedule = optimizer.make_schedule(train)
    value_and_grad = jax.value_and_grad(stage.loss, has_aux=True)

    def gradients(params: PyTree, batch: PyTree, key: jax.Array) -> tuple[PyTree, Metrics]:
        if train.accumulate == 1:
            (loss, metrics), grads = value_and_grad(params, batch, key)
            return grads, {**metrics, "loss": loss}

        batch = jax.tree.map(
            lambda leaf: rearrange(leaf, "(a b) ... -> a b ...", a=train.accumulate), batch
        )

        def add(total: PyTree, inputs: tuple[PyTree, jax.Array]) -> tuple[PyTree, Metrics]:
            microbatch, index = inputs
            (loss, metrics), grads = value_and_grad(
                params, microbatch, jax.random.fold_in(key, index)
            )
            return jax.tree.map(jnp.add, total, grads), {**metrics, "loss": loss}

        zeros = jax.tree.map(jnp.zeros_like, params)
        total, metrics = jax.lax.scan(add, zeros, (batch, jnp.arange(train.accumulate)))
        grads = jax.tree.map(lambda leaf: leaf / train.accumulate, total)
        return grads, jax.tree.map(jnp.mean, metrics)

    def train_step(old: state.TrainState, batch: PyTree) -> tuple[state.TrainState, Metrics]:
        key = state.derive_key(train.seed, old.step, state.LOSS)
        grads, metrics = gradients(old.params, batch, key)
        grad_norm = optax.global_norm(grads)
        # One bad gradient makes the norm not finite, so this sees every leaf.
        finite = jnp.isfinite(metrics["loss"]) & jnp.isfinite(grad_norm)

        updates, opt_state = tx.update(grads, old.opt_state, old.params)
        params = optax.apply_updates(old.params, updates)
        decay = state.ema_decay(train.ema_decay, old.step)
        new = state.TrainState(
            step=old.step + 1,
            params=params,
            ema=state.update_ema(old.ema, params, decay),
            opt_state=opt_state,
        )
        new = jax.tree.map(lambda after, before: jnp.where(finite, after, before), new, old)
        metrics = {
            **metrics,
            "grad_norm": grad_norm,
            "learning_rate": jnp.asarray(schedule(old.step), jnp.float32),
            "ema_decay": decay,
            "finite": finite.astype(jnp.float32),
        }
        return new, metrics

    return jax.jit(train_step, donate_argnums=0)


def check_batch(batch: dict[str, Any], batch_size: int) -> None:
    """Raises ValueError unless every array of `batch` has `batch_size` examples."""
    wrong = {name: leaf.shape for name, leaf in batch.items() if leaf.shape[:1] != (batch_size,)}
    if wrong:
        raise ValueError(
            f"train.batch_size = {batch_size}, but the data pipeline gave "
            + ", ".join(f"{name} {shape}" for name, shape in wrong.items())
        )
