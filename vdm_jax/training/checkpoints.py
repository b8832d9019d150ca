"""Checkpoints: state, data position, configuration and fingerprint, saved together as one step.

A step is complete or it does not exist: Orbax writes it under a temporary name and renames it at
the end, so a run killed while saving resumes from the step before. What comes back is compared
with its fingerprint, because the array store itself restores flipped bytes without a word.
"""

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import Array, PyTree

from vdm_jax import config as config_lib
from vdm_jax.training.state import TrainState, sharding

DIRECTORY = "checkpoints"


class CheckpointError(RuntimeError):
    """A checkpoint that is absent, damaged or of another configuration."""


class Checkpoints:
    """The checkpoints of one working directory, `workdir/checkpoints/STEP`."""

    def __init__(self, workdir: str | Path, keep: int = 1):
        self.directory = Path(workdir).absolute() / DIRECTORY
        self._manager = ocp.CheckpointManager(
            self.directory,
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
            ),
        )

    def latest(self) -> int | None:
        """The last complete step, None when there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, iterator: Iterator, config) -> None:
        """Saves `state` under its step, with the position of `iterator` and `config`.

        Returns when everything is copied from the device; files are written meanwhile. Saving a
        step that is there already does nothing.
        """
        step = int(state.step)
        if step == self.latest():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(_as_dict(state)),
                data=grain.checkpoint.CheckpointSave(iterator),
                config=ocp.args.JsonSave(config_lib.to_dict(config)),
                fingerprint=ocp.args.JsonSave(fingerprint(_as_dict(state))),
            ),
            force=True,
        )

    def restore(self, abstract: TrainState, iterator: Iterator, config) -> TrainState:
        """The latest state; `iterator` is moved to its position.

        Raises CheckpointError when the checkpoint is of a configuration that differs in a field
        that matters, naming the fields, or when its content is damaged.
        """
        step = self._required_step()
        saved = self._manager.restore(
            step, args=ocp.args.Composite(config=ocp.args.JsonRestore())
        ).config
        differences = config_lib.resume_differences(config_lib.from_dict(saved), config)
        if differences:
            raise CheckpointError(
                f"{self.directory / str(step)} is of another configuration and cannot be resumed "
                "with this one:\n  " + "\n  ".join(differences) + "\nGive the old values, or start "
                "anew in another --workdir."
            )
        target = _placed(_as_dict(abstract))
        try:
            restored = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(target),
                    fingerprint=ocp.args.JsonRestore(),
                ),
            )
            data = grain.checkpoint.CheckpointRestore(iterator)
            self._manager.restore(step, args=ocp.args.Composite(data=data))
        except (ValueError, KeyError, OSError) as error:
            raise self._damaged(step, str(error)[:300]) from error
        wrong = _mismatches(restored.fingerprint, fingerprint(restored.state))
        if wrong:
            raise self._damaged(step, "wrong content in " + ", ".join(wrong[:5]))
        return TrainState(**restored.state)

    def wait(self) -> None:
        """Waits for files being written; raises what went wrong with them."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits for files being written and lets go of the directory."""
        self._manager.close()

    def _required_step(self) -> int:
        step = self.latest()
        if step is None:
            raise CheckpointError(f"{self.directory} holds no complete checkpoint")
        return step

    def _damaged(self, step: int, why: str) -> CheckpointError:
        path = self.directory / str(step)
        return CheckpointError(
            f"{path} is damaged: {why}\nDelete that directory to go on from the checkpoint "
            "before it, or from the start."
        )


def has_checkpoint(workdir: str | Path) -> bool:
    """Whether `workdir` holds a complete checkpoint."""
    directory = Path(workdir) / DIRECTORY
    return directory.is_dir() and any(path.name.isdigit() for path in directory.iterdir())


def read_config(workdir: str | Path):
    """(step, configuration) of the latest checkpoint of `workdir`."""
    with _reader(workdir) as manager:
        step = _latest(manager, workdir)
        saved = manager.restore(step, args=ocp.args.Composite(config=ocp.args.JsonRestore()))
        return step, config_lib.from_dict(saved.config)


def read_ema(workdir: str | Path, abstract_params: PyTree) -> PyTree:
    """The averaged parameters of the latest checkpoint, without reading the rest of the state.

    abstract_params: shapes and dtypes (jax.eval_shape of the stage's init).
    """
    target = {"ema": _placed(abstract_params)}
    with _reader(workdir) as manager:
        step = _latest(manager, workdir)
        restored = manager.restore(
            step,
            args=ocp.args.Composite(
                state=ocp.args.PyTreeRestore(
                    target,
                    restore_args=ocp.checkpoint_utils.construct_restore_args(target),
                    partial_restore=True,
                ),
                fingerprint=ocp.args.JsonRestore(),
            ),
        )
    found = fingerprint(restored.state)
    expected = {name: restored.fingerprint.get(name) for name in found}
    wrong = _mismatches(expected, found)
    if wrong:
        raise CheckpointError(
            f"{Path(workdir) / DIRECTORY / str(step)} is damaged: wrong content in "
            + ", ".join(wrong[:5])
        )
    return restored.state["ema"]


def fingerprint(tree: PyTree) -> dict[str, int]:
    """A 32-bit checksum of every leaf by its path, e.g. {"ema/head/kernel": 123}.

    Computed where the array lives, in integer arithmetic, so it is the same for every sharding
    and moves no array to the host. Element i is weighted by the odd number 2i + 1, which is
    invertible modulo 2^32: a change of any one element is always seen, a swap almost always.
    """
    sums = {
        jax.tree_util.keystr(path, simple=True, separator="/"): _checksum(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    return {name: int(value) for name, value in jax.device_get(sums).items()}


# One leaf at a time: compiled once a shape, where a whole tree would be a program of its own.
@jax.jit
def _checksum(leaf: Array) -> Array:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    # 8-byte types, with x64 enabled, become two 4-byte words along a new last axis.
    bits = jax.lax.bitcast_convert_type(leaf, unsigned.get(leaf.dtype.itemsize, jnp.uint32))
    index = functools.reduce(
        jnp.add,
        (
            jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * np.uint32(stride % 2**32)
            for axis, stride in enumerate(_strides(bits.shape))
        ),
        jnp.zeros(bits.shape, jnp.uint32),
    )
    return jnp.sum(bits.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]


def _mismatches(expected: dict[str, Any], found: dict[str, int]) -> list[str]:
    names = sorted(expected.keys() | found.keys())
    return [name for name in names if expected.get(name) != found.get(name)]


def _as_dict(state: TrainState) -> dict[str, Any]:
    return {
        "step": state.step,
        "params": state.params,
        "ema": state.ema,
        "opt_state": state.opt_state,
    }


def _placed(tree: PyTree) -> PyTree:
    # Where an array is to live must be said, or it comes back as it was placed when saved: on
    # devices that this machine may not have.
    place = sharding()
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree
    )


def _reader(workdir: str | Path) -> ocp.CheckpointManager:
    directory = Path(workdir).absolute() / DIRECTORY
    if not directory.is_dir():
        raise CheckpointError(f"{directory} does not exist: nothing has been trained there")
    return ocp.CheckpointManager(
        directory, options=ocp.CheckpointManagerOptions(create=False, read_only=True)
    )


def _latest(manager: ocp.CheckpointManager, workdir: str | Path) -> int:
    step = manager.latest_step()
    if step is None:
        raise CheckpointError(f"{Path(workdir) / DIRECTORY} holds no complete checkpoint")
    return step
