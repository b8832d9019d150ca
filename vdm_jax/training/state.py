"""The train state: everything that one update reads and writes."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

# What a random key is for. A key is a function of (seed, step, purpose) and nothing else, so a
# resumed run draws what the uninterrupted one would have drawn, without keys in checkpoints.
INIT, LOSS, SAMPLE = range(3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """step: updates done, int32 scalar; params and their moving average ema; opt_state: optax's."""

    step: Int[Array, ""]
    params: PyTree
    ema: PyTree
    opt_state: Any


def derive_key(seed: int, step, purpose: int) -> jax.Array:
    """The random key of (seed, step, purpose); `step` may be traced."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), purpose)


def create_state(stage, tx: optax.GradientTransformation, seed: int) -> TrainState:
    """A state at step 0: parameters from `stage.init`, EMA equal to them, fresh optimiser."""

    def create():
        params = stage.init(derive_key(seed, 0, INIT))
        # A copy: params and ema are donated together, so they must not share a buffer.
        ema = jax.tree.map(jnp.copy, params)
        return TrainState(
            step=jnp.zeros((), jnp.int32), params=params, ema=ema, opt_state=tx.init(params)
        )

    # Run once, so on a CPU, where compiling hundreds of random initialisers takes far longer than
    # running them, it is not worth optimising: half the time, and the same numbers.
    on_cpu = jax.default_backend() == "cpu"
    options = {"xla_backend_optimization_level": "0"} if on_cpu else None
    return place(jax.jit(create, compiler_options=options)())


def sharding() -> jax.sharding.Sharding:
    """Where a state lives: all of it on the first device."""
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])


def place(tree: PyTree) -> PyTree:
    """The arrays, said to live where `sharding` says: nothing is copied that is there already.

    Without it a new state would be free to move where a restored one is not, and the compiled
    step would be another one, to be compiled once more, after resuming.
    """
    return jax.device_put(tree, sharding())


def abstract_state(stage, tx: optax.GradientTransformation) -> TrainState:
    """The shapes and dtypes of a state, without its memory."""

    def create():
        params = stage.init(jax.random.key(0))
        return TrainState(
            step=jnp.zeros((), jnp.int32), params=params, ema=params, opt_state=tx.init(params)
        )

    return jax.eval_shape(create)


def ema_decay(decay: float, step) -> Float[Array, ""]:
    """Decay of the moving average at the update after `step` updates: min(decay, (1+s)/(10+s)).

    The warm-up forgets the random start: without it, a decay of .9999 would still hold a third
    of the initial weights after 10,000 updates.
    """
    step = jnp.asarray(step, jnp.float32)
    return jnp.minimum(decay, (1 + step) / (10 + step))


def update_ema(ema: PyTree, params: PyTree, decay) -> PyTree:
    """decay * ema + (1 - decay) * params, leaf by leaf."""
    return jax.tree.map(lambda average, new: average + (1 - decay) * (new - average), ema, params)


def count_parameters(params: PyTree) -> int:
    """The number of scalars in a tree of arrays or of shapes."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
