"""The train state: everything that one update reads and writes."""

import contextlib
import dataclasses
from collections.abc import Iterator

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, PyTree

from vdm_jax.parallel import sharding

# What a random key is for. A key is a function of (seed, step, purpose) and nothing else, so a
# resumed run draws what the uninterrupted one would have drawn, without keys in checkpoints.
INIT, LOSS, SAMPLE = range(3)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainState:
    """What is saved and resumed. Trees of the same structure hold shapes or places of the arrays.

    Attributes:
      step: updates done, an int32 scalar.
      skipped: of them those that were not applied, because they were not finite.
      params, ema: the parameters and their moving average.
      opt_state: optax's, of what the stage trains.
    """

    step: PyTree
    skipped: PyTree
    params: PyTree
    ema: PyTree
    opt_state: PyTree


def derive_key(seed: int, step, purpose: int) -> jax.Array:
    """The random key of (seed, step, purpose); `step` may be traced."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), purpose)


def create_state(
    stage, tx: optax.GradientTransformation, seed: int, plan: sharding.Plan
) -> TrainState:
    """A state at step 0: parameters from `stage.init`, EMA equal to them, fresh optimiser.

    Made where the plan stores it; the numbers do not depend on the plan.
    """
    # Run once, so on a CPU, where compiling hundreds of random initialisers takes far longer than
    # running them, it is not worth optimising: half the time, and the same numbers.
    on_cpu = plan.mesh.devices.flat[0].platform == "cpu"
    options = {"xla_backend_optimization_level": "0"} if on_cpu else None
    create = jax.jit(
        lambda: _create(stage, tx, derive_key(seed, 0, INIT)),
        out_shardings=state_shardings(stage, tx, plan),
        compiler_options=options,
    )
    with random_bits_by_kernel():
        return create()


@contextlib.contextmanager
def random_bits_by_kernel() -> Iterator[None]:
    """What is compiled for a GPU inside takes its random bits from JAX's own kernel: the same bits.

    JAX otherwise unrolls Threefry wherever numbers are drawn, which is quicker to run and, in a
    program that draws each parameter once, takes a compiler minutes. Changes nothing elsewhere.
    """
    name = "jax_threefry_gpu_kernel_lowering"
    before = getattr(jax.config, name)
    jax.config.update(name, True)
    try:
        yield
    finally:
        jax.config.update(name, before)


def from_params(
    stage, params: PyTree, tx: optax.GradientTransformation, plan: sharding.Plan
) -> TrainState:
    """A state at step 0 that starts from `params`, which live where the plan stores them."""
    places = _shardings(stage, params, tx, plan)
    return jax.jit(lambda p: _fresh(stage, p, tx), out_shardings=places)(params)


def abstract_state(stage, tx: optax.GradientTransformation, plan: sharding.Plan) -> TrainState:
    """The shapes, dtypes and places of a state, without its memory."""
    shapes = jax.eval_shape(lambda: _create(stage, tx, jax.random.key(0)))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        _shardings(stage, shapes.params, tx, plan),
    )


def state_shardings(stage, tx: optax.GradientTransformation, plan: sharding.Plan) -> TrainState:
    """Where each array of a state is stored."""
    params = nn.meta.unbox(stage.abstract_params())
    return _shardings(stage, params, tx, plan)


def _create(stage, tx: optax.GradientTransformation, key: jax.Array) -> TrainState:
    return _fresh(stage, stage.init(key), tx)


def _fresh(stage, params: PyTree, tx: optax.GradientTransformation) -> TrainState:
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        skipped=jnp.zeros((), jnp.int32),
        params=params,
        # A copy: params and ema are donated together, so they must not share a buffer.
        ema=jax.tree.map(jnp.copy, params),
        opt_state=tx.init(stage.trained(params)),
    )


def _shardings(
    stage, params: PyTree, tx: optax.GradientTransformation, plan: sharding.Plan
) -> TrainState:
    return TrainState(
        step=plan.everywhere,
        skipped=plan.everywhere,
        params=plan.params,
        ema=plan.params,
        opt_state=plan.opt_state(tx, stage.trained(params)),
    )


def merge(some: PyTree, whole: PyTree) -> PyTree:
    """`whole` with the leaves of `some`, where that has any, in their place."""
    return jax.tree.map(
        lambda new, old: old if new is None else new, some, whole, is_leaf=lambda leaf: leaf is None
    )


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
