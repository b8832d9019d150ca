"""The arrays of one step, by Orbax: written while training goes on, read onto any devices.

A failure to read is no proof of damage. Only what differs from the step's own list of files or
from its fingerprint, or what no list vouches for, is called damaged, since a damaged step may be
set aside without asking.
"""

import asyncio
import concurrent.futures
import functools
import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import PyTree

from vdm_jax.training import integrity, processes
from vdm_jax.training.integrity import CheckpointError, DamagedError, enumerated, plain

T = TypeVar("T")
STATE = "state"  # the directory of a step that holds the arrays


class ArrayStore:
    """Writes and reads `STEP/state`, each process its own part of every array."""

    def __init__(self):
        import orbax.checkpoint as ocp  # half of what sampling would import, and does not need

        _silence_orbax()
        self._ocp = ocp
        self._handler = ocp.PyTreeCheckpointHandler()

    def start_writing(self, step: Path, tree: Mapping[str, PyTree]) -> list[Any]:
        """Copies this process's part from the devices; futures of the writing that goes on.

        `step` is there and empty but for what `make` makes.
        """
        writing = self._handler.async_save(_state(step), args=self._ocp.args.PyTreeSave(dict(tree)))
        # In a thread of its own: the caller, a notebook say, may run an event loop in this one.
        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, writing).result()

    def complete(self, step: Path) -> None:
        """Joins what the processes have written. Done by one process, when all have written."""
        self._handler.finalize(_state(step))

    def read(
        self,
        step: Path,
        target: Mapping[str, PyTree],
        prints: Mapping[str, int],
        *,
        who: str,
        only: str = "",
        together: bool = False,
    ) -> tuple[dict[str, PyTree], str]:
        """The arrays of `target`, verified; and a note on floating-point types converted, or "".

        target: `jax.ShapeDtypeStruct` leaves, placed by their `sharding` or else on the first
        device. prints: the step's fingerprint. who: wants them, for messages ("the network").
        only: the one field of the state in `target`, which messages do not repeat; without it,
        `target` is all of the state. together: every process calls this and gets the same answer.

        Raises CheckpointError for arrays that are not as `target` wants them, naming them;
        DamagedError, naming files or arrays.
        """
        all_do = processes.all_do if together else _alone
        first_does = processes.first_does if together else _alone
        first_does(lambda: _check_files(step))
        try:
            arrays = all_do(lambda: self._read(step, target, who, only))
        except DamagedError as error:
            why = str(error)
            first_does(lambda: self._explain_failure(step, why))
            raise
        found = integrity.fingerprint(arrays)
        if wrong := integrity.wrong_arrays({name: prints.get(name) for name in found}, found):
            first_does(lambda: _explain_content(step, wrong))
        return _converted(arrays, target)

    def close(self) -> None:
        """Lets go of what writing and reading need."""
        self._handler.close()

    def _read(
        self, step: Path, target: Mapping[str, PyTree], who: str, only: str
    ) -> dict[str, PyTree]:
        try:
            saved = integrity.named_leaves(self._handler.metadata(_state(step)).tree)
        except Exception as error:
            raise DamagedError(_brief(step, error)) from error
        if only:
            saved = {name: leaf for name, leaf in saved.items() if name.startswith(f"{only}/")}
        if problems := _differences(saved, integrity.named_leaves(target), who, only):
            raise CheckpointError(
                f"the arrays of {step} are not those of {who}:\n  "
                + "\n  ".join(problems[:10])
                + (f"\n  and {len(problems) - 10} more" if len(problems) > 10 else "")
            )
        placed = _as_saved(target, saved)
        arguments = self._ocp.args.PyTreeRestore(
            placed,
            restore_args=self._ocp.checkpoint_utils.construct_restore_args(placed),
            partial_restore=bool(only),
        )
        try:
            return self._handler.restore(_state(step), args=arguments)
        except (jax.errors.JaxRuntimeError, MemoryError) as error:
            raise CheckpointError(f"{step} cannot be read: {plain(error)}") from error
        except Exception as error:
            raise DamagedError(_brief(step, error)) from error

    def _explain_failure(self, step: Path, why: str) -> None:
        """Raises what a failure to read the arrays comes from."""
        problems = integrity.wrong_files(step, thorough=True)
        if problems:
            raise DamagedError(f"{step} is damaged: {enumerated(problems)}")
        if problems == [] or "permission denied" in why.lower():
            as_written = ", though every file is as it was written" if problems == [] else ""
            raise CheckpointError(f"{step} cannot be read{as_written}: {why}")
        names = self._unreadable(step)
        what = f"{enumerated(names)} cannot be read" if names else "its arrays cannot be read"
        raise DamagedError(f"{step} is damaged: {what} ({why})")

    def _unreadable(self, step: Path) -> list[str]:
        """The arrays that cannot be read, tried one by one; none where not even their names can."""
        try:
            tree = self._handler.metadata(_state(step)).tree
        except Exception:
            return []
        leaves, structure = jax.tree.flatten(tree)
        ocp, bad = self._ocp, []
        for index, name in enumerate(integrity.named_leaves(tree)):
            alone = [ocp.PLACEHOLDER] * len(leaves)
            alone[index] = np.empty(leaves[index].shape, leaves[index].dtype)
            item = jax.tree.unflatten(structure, alone)
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            try:
                self._handler.restore(
                    _state(step), args=ocp.args.PyTreeRestore(item, restore_args=as_numpy)
                )
            except Exception:
                bad.append(name)
        return bad


def make(step: Path) -> None:
    """Makes the directories that `start_writing` needs. Raises OSError."""
    # With the one that Orbax's first process makes while the others wait for it, in vain if its
    # disk is full by then.
    (step / STATE / "array_metadatas").mkdir(parents=True)


def _state(step: Path) -> epath.Path:
    return epath.Path(step / STATE)


def _alone(work: Callable[[], T]) -> T:
    return work()


def _as_saved(target: Mapping[str, PyTree], saved: Mapping[str, Any]) -> dict[str, PyTree]:
    """`target` in the types that were saved, every array with its place."""
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    types = iter(saved[name].dtype for name in integrity.named_leaves(target))
    # Where an array is to live must be said, or it comes back as it was placed when saved: on
    # devices that this machine may not have.
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(
            leaf.shape, next(types), sharding=getattr(leaf, "sharding", None) or device
        ),
        dict(target),
    )


def _converted(arrays: dict[str, PyTree], target: Mapping[str, PyTree]) -> tuple[PyTree, str]:
    kinds: dict[tuple[str, str], list[str]] = {}

    def convert(path, array, leaf):
        if array.dtype == leaf.dtype:
            return array
        names = kinds.setdefault((array.dtype.name, np.dtype(leaf.dtype).name), [])
        names.append(jax.tree_util.keystr(path, simple=True, separator="/"))
        return jax.device_put(array.astype(leaf.dtype), array.sharding)

    converted = jax.tree_util.tree_map_with_path(convert, arrays, dict(target))
    notes = [
        f"saved as {old} and converted to {new}: {enumerated(names, most=3)}"
        for (old, new), names in kinds.items()
    ]
    return converted, "; ".join(notes)


def _differences(
    saved: Mapping[str, Any], wanted: Mapping[str, Any], who: str, only: str
) -> list[str]:
    problems = []
    for name in sorted(saved.keys() | wanted.keys()):
        shown = name.removeprefix(f"{only}/") if only else name
        if name not in saved:
            problems.append(f"{shown} is missing, {who} wants {_kind(wanted[name])}")
        elif name not in wanted:
            problems.append(f"{shown} is {_kind(saved[name])}, {who} has no such array")
        elif not _convertible(saved[name], wanted[name]):
            problems.append(f"{shown} is {_kind(saved[name])}, {who} wants {_kind(wanted[name])}")
    return problems


def _convertible(saved: Any, wanted: Any) -> bool:
    floating = all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in (saved, wanted))
    same = saved.dtype == wanted.dtype or floating
    return same and tuple(saved.shape) == tuple(wanted.shape)


def _kind(leaf: Any) -> str:
    return f"{np.dtype(leaf.dtype).name}[{','.join(map(str, leaf.shape))}]"


def _check_files(step: Path) -> None:
    if problems := integrity.wrong_files(step, thorough=False):
        raise DamagedError(f"{step} is damaged: {enumerated(problems)}")


def _explain_content(step: Path, wrong: list[str]) -> None:
    """Raises what wrong arrays come from."""
    problems = integrity.wrong_files(step, thorough=True)
    where = f"{enumerated(problems)}; " if problems else ""
    raise DamagedError(f"{step} is damaged: {where}wrong content in {enumerated(wrong)}")


def _brief(step: Path, error: Exception) -> str:
    """An error in a few words, with the last file of the step that it speaks of."""
    text = re.split(r" \[\w+=", str(error))[0]
    files = re.findall(re.escape(f"{step}/") + r'([^"\n]*[^"/\n])"', text)
    return f"{files[-1]}: {plain(error)}" if files else plain(error)


@functools.cache
def _silence_orbax() -> None:
    """Keeps tracebacks of Orbax off the screen: what failed is told here, in a line.

    Of many arrays that fail at once, Orbax raises the first error and leaves the others to
    finish on an event loop that it has closed. Each says so.
    """

    def comes_from_orbax(error: BaseException | None, trace: TracebackType | None) -> bool:
        files = (Path(frame.f_code.co_filename) for frame, _ in traceback.walk_tb(trace))
        return "OCDBT" in str(error) or any("orbax" in file.parts for file in files)

    def keep(record: logging.LogRecord) -> bool:
        return not (record.exc_info and comes_from_orbax(*record.exc_info[1:]))

    for name in ("absl", "asyncio"):
        logging.getLogger(name).addFilter(keep)
    warnings.filterwarnings("ignore", message="coroutine 'async_serialize_from_host")
    usual = sys.unraisablehook

    def show(unraisable) -> None:
        error, trace = unraisable.exc_value, unraisable.exc_traceback
        # Called by TensorStore: no other traceback begins in this function.
        late = trace is not None and trace.tb_frame.f_code.co_name == "call_soon_threadsafe"
        if not late and not comes_from_orbax(error, trace):
            usual(unraisable)

    sys.unraisablehook = show
