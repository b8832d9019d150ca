"""The optimiser of a configuration: warm-up, clipping, AdamW or Muon."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import optax
from jaxtyping import PyTree
from optax.contrib import MuonDimensionNumbers

from vdm_jax.models import layers

# An update by Muon has AdamW's usual root mean square, so both take the same learning rates (Liu et
# al. 2025, equation 4).
_RMS = 0.2


def make_schedule(train) -> optax.Schedule:
    """Learning rate by update: linear warm-up, then constant or cosine to zero at `train.steps`.

    Reads train.{learning_rate, warmup_steps, schedule, steps}.
    """
    warmup = train.warmup_steps
    if train.schedule == "cosine":
        if warmup >= train.steps:
            raise ValueError(
                f"train.warmup_steps = {warmup}: must be smaller than train.steps = {train.steps}"
            )
        after = optax.cosine_decay_schedule(train.learning_rate, train.steps - warmup)
    elif train.schedule == "constant":
        after = optax.constant_schedule(train.learning_rate)
    else:
        raise ValueError(f"train.schedule = {train.schedule!r}: must be one of constant, cosine")

    if warmup == 0:
        return after
    # The first update already moves: 1/warmup of the rate, not zero.
    start = train.learning_rate / warmup
    ramp = optax.linear_schedule(start, train.learning_rate, max(warmup - 1, 1))
    return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(train, abstract_params: PyTree = None) -> optax.GradientTransformation:
    """Clipping by the global norm (train.clip_norm, 0 = none) and an optimiser at `make_schedule`'s
    rate.

    train.optimizer is adamw, or muon (Jordan et al. 2024, Liu et al. 2025): the momentum of every
    matrix is orthogonalised, and Adam with Nesterov's momentum updates biases and scales. Weight
    decay acts on matrices and kernels only, never on biases and scales. The first moments are kept
    in train.moment_dtype, the second in float32.

    Args:
      train: the section of a configuration.
      abstract_params: `Stage.abstract_params`, whose names of axes say what a matrix is. Only muon
        reads them.

    Raises ValueError for muon without them.
    """
    clip = clip_by_norm(train.clip_norm) if train.clip_norm else optax.identity()
    rate = make_schedule(train)
    moments = {"mu_dtype": train.moment_dtype, "weight_decay": train.weight_decay}
    if train.optimizer == "adamw":
        adamw = optax.adamw(
            rate,
            b1=train.beta1,
            b2=train.beta2,
            mask=lambda params: jax.tree.map(lambda leaf: leaf.ndim > 1, params),
            **moments,
        )
        return optax.chain(clip, adamw)
    if abstract_params is None:
        raise ValueError("train.optimizer = 'muon': needs the names of the parameters' axes")
    muon = optax.contrib.muon(
        rate,
        adam_b1=train.beta1,
        adam_b2=train.beta2,
        consistent_rms=_RMS,
        muon_weight_dimension_numbers=_matrices(abstract_params),
        **moments,
    )
    return optax.chain(clip, muon)


def clip_by_norm(largest: float) -> optax.GradientTransformation:
    """`optax.clip_by_global_norm`, with one factor for all gradients in the place of a division of
    each: on a CPU that takes XLA a program of its own a parameter, a tenth of its time."""

    def update(updates: PyTree, state: PyTree, params: PyTree = None) -> tuple[PyTree, PyTree]:
        scale = jnp.minimum(1.0, largest / optax.global_norm(updates))
        return jax.tree.map(lambda leaf: (scale * leaf).astype(leaf.dtype), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def _matrices(abstract_params: PyTree) -> Callable[[PyTree], PyTree]:
    """A function of parameters to which axes of each are the rows and columns of its matrix."""
    named = jax.tree_util.tree_leaves_with_path(
        abstract_params, is_leaf=lambda leaf: isinstance(leaf, layers.Named)
    )
    table = {jax.tree_util.keystr(path): matrix_axes(leaf.names) for path, leaf in named}
    # By path, since optax also asks for a placeholder that has no parameters.
    return lambda params: jax.tree_util.tree_map_with_path(
        lambda path, _: table[jax.tree_util.keystr(path)], params
    )


def matrix_axes(names: Sequence[str | None]) -> MuonDimensionNumbers | None:
    """The input and output axes of a linear map's kernel whose axes have logical `names`; None for
    a bias, a scale or a table of embeddings, whose rows are looked up and not multiplied.

    The places of a convolution's kernel are inputs. Heads and their widths are outputs of a map to
    heads and inputs of a map from heads. Blocks that share one stacked kernel have a matrix each.
    """
    if layers.VOCAB in names:
        return None
    axes = [axis for axis, name in enumerate(names) if name != layers.STACKED]
    last = -2 if names[-1] == layers.HEAD_DIM else -1
    inputs, outputs = axes[:last], axes[last:]
    return MuonDimensionNumbers(tuple(inputs), tuple(outputs)) if inputs and outputs else None
