"""Checkpoints: state, data position, configuration and fingerprint, saved together as one step.

A step is complete or it does not count (`step_folders.py`), so a run killed while saving resumes
from the step before. What comes back is compared with its fingerprint, because the array store
itself restores flipped bytes without a word.

Orbax writes and reads the arrays, each process its own part. When a step begins, is complete or
has failed is decided here, by all processes together (`processes.py`): a process whose disk is
full tells the others why, and all go on at once, where Orbax's own manager would keep them waiting
at a barrier until it times out, and would leave the half-written step where it is.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from jaxtyping import PyTree

from vdm_jax import config as config_lib
from vdm_jax.training import array_store, integrity, processes, shared_folder, step_folders
from vdm_jax.training.integrity import CheckpointError, DamagedError, fingerprint
from vdm_jax.upgrade import upgrade

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "DamagedError",
    "fingerprint",
    "has_checkpoint",
    "read_config",
    "read_ema",
    "read_params",
]

State = TypeVar("State")  # a dataclass of arrays with a `step`, such as TrainState
DIRECTORY = "checkpoints"
_ADVICE = "--config.checkpoint.fallback=true"


@dataclasses.dataclass
class _Save:
    """A save whose files are being written."""

    step: int
    thread: threading.Thread | None = None
    error: Exception | None = None
    notes: list[str] = dataclasses.field(default_factory=list)


class Checkpoints:
    """The checkpoints of one working directory, `workdir/checkpoints/STEP`.

    keep: how many stay. report: takes warnings, a line each, on the first process only; may be set
    anew.

    With several processes, which share the file system, all call the same methods in the same
    order with the same arguments (but for their parts of the arrays), and all get the same answer:
    what fails on one of them has failed on all. Only `poll` may be called by one and not another;
    until the next `save` or `wait`, `latest` and `failed_step` may then differ between them.

    Raises CheckpointError when the directory cannot be made, or is not the same for all processes.
    """

    def __init__(self, workdir: str | Path, keep: int = 1, report: Callable[[str], object] = print):
        self.directory = Path(workdir).absolute() / DIRECTORY
        self._keep = keep
        self.report = report
        self._store = array_store.ArrayStore()
        self._pending: _Save | None = None
        self._failed: tuple[int, str] | None = None
        self._steps, ignored = processes.first_does(self._prepare)
        shared_folder.check(self.directory)
        for text in ignored:
            self._tell(text)

    def latest(self) -> int | None:
        """The last complete step, None when there is none; as of the last call of a method."""
        return self._steps[-1] if self._steps else None

    @property
    def failed_step(self) -> int | None:
        """The step of the most recent save if that failed; as of the last call of a method."""
        return self._failed[0] if self._failed else None

    def save(self, state: State, position: dict[str, Any], config) -> None:
        """Saves `state` under its step, with `position` (of the data, as JSON) and `config`.

        Returns when everything is copied from the device; files are written meanwhile. Saving a
        step that is there already does nothing. A save that fails is reported and its files are
        removed; training goes on, and the next save is a new attempt.
        """
        self._settle()
        step = int(state.step)
        if step in self._steps:
            self._failed = None
            return
        items = {
            "data": json.dumps(position),
            "config": json.dumps(config_lib.to_dict(config)),
            "meta": json.dumps(integrity.provenance() if processes.is_first() else {}),
        }
        directory = self.directory / str(step)
        try:
            processes.first_does(lambda: step_folders.make(directory))
        except CheckpointError as error:
            processes.first_does(lambda: step_folders.remove(directory))
            self._fail(step, error)
            return
        tree = _as_dict(state)
        try:
            items["fingerprint"] = json.dumps(fingerprint(tree))
            futures = self._store.start_writing(directory, tree)
        except Exception as error:
            # Told to the other processes by the thread, as if it had happened while writing.
            futures = [concurrent.futures.Future()]
            futures[0].set_exception(error)
        # Tickets are taken here: main thread and thread must not mix up their order.
        tickets = [processes.ticket() for _ in range(3)]
        save = self._pending = _Save(step)
        save.thread = threading.Thread(
            target=self._finish,
            args=(save, directory, items, futures, tickets),
            name=f"checkpoint of step {step}",
        )
        save.thread.start()

    def poll(self) -> None:
        """Reports a save that has failed meanwhile. Waits for nothing and nobody."""
        if self._pending and not self._pending.thread.is_alive():
            self._settle()

    def wait(self) -> None:
        """Waits for files being written. Raises CheckpointError if the most recent save failed."""
        self._settle(quiet=True)
        if self._failed:
            step, why = self._failed
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written: {why}; {self._last()}"
            )

    def close(self) -> None:
        """Waits for files being written, and reports what went wrong with them."""
        self._settle()
        self._store.close()

    def restore(
        self, abstract: State, config, *, fallback: bool = False
    ) -> tuple[State, dict[str, Any]]:
        """The latest state and its data position.

        abstract: the state as `jax.ShapeDtypeStruct` leaves whose `sharding` says where each array
        is to live: any mesh of any number of devices (None: the first device). Numbers saved in
        another floating-point type are converted after they have been verified, and that is
        reported. fallback: a damaged step is renamed to damaged_STEP and the one before is tried.

        Raises CheckpointError when the checkpoint is of a configuration that differs in a field
        that matters, or of arrays with other names or shapes, naming them; DamagedError, which is
        a CheckpointError, when its content is damaged, naming the file or the arrays.
        """
        self._settle()
        aside = []
        while (step := self.latest()) is not None:
            path = self.directory / str(step)
            try:
                return self._restore(path, abstract, config)
            except DamagedError as error:
                if not fallback:
                    raise DamagedError(f"{error}\n{self._advice()}") from error
                name = processes.first_does(lambda path=path: step_folders.put_aside(path))
                self._steps.pop()
                self._tell(f"{error}; it is kept as {name}")
                aside.append(name)
        if not aside:
            raise CheckpointError(f"{self.directory} holds no complete checkpoint")
        raise CheckpointError(
            f"{self.directory} holds no good checkpoint, only {integrity.enumerated(aside)}. "
            "Started again in this --workdir, the run begins at step 0."
        )

    def _restore(self, path: Path, abstract: State, config) -> tuple[State, Any]:
        position, prints = processes.all_do(lambda: self._read_items(path, config))
        fields, note = self._store.read(
            path, _as_dict(abstract), prints, who="this run", together=True
        )
        if note:
            self._tell(f"{path}: {note}")
        return dataclasses.replace(abstract, **fields), position

    def _read_items(self, path: Path, config) -> tuple[dict[str, Any], dict[str, int]]:
        saved = _saved_config(path)
        differences = config_lib.resume_differences(saved, config)
        if differences:
            raise CheckpointError(
                f"{path} is of another configuration and cannot be resumed with this one:\n  "
                + "\n  ".join(differences)
                + "\nGive the old values, or start anew in another --workdir."
            )
        if not (path / "meta").exists() and not (path / "data" / "metadata").exists():
            raise CheckpointError(
                f"{path} is of an earlier format, whose data position this code cannot take up: "
                "vdm_jax.load reads its model, but a run must start anew in another --workdir."
            )
        meta = integrity.read_item(path, "meta")
        if meta.get("format", 0) > integrity.FORMAT:
            raise CheckpointError(
                f"{path} is of format {meta['format']}, this code reads {integrity.FORMAT}: it was "
                f"written by {integrity.other_code(meta) or 'a newer vdm_jax'}"
            )
        if other := processes.is_first() and integrity.other_code(meta):
            self._tell(f"{path} was written by {other}")
        return integrity.read_item(path, "data"), integrity.read_item(path, "fingerprint")

    def _prepare(self) -> tuple[list[int], list[str]]:
        """Makes and tidies the directory: its steps, and a line for each unfinished save."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            why = integrity.plain(error)
            raise CheckpointError(f"{self.directory} cannot be made: {why}") from error
        ignored = []
        for path, was_saved in step_folders.clear(self.directory):
            if was_saved:
                ignored.append(f"ignored: {path}, a save of step {path.name} that did not finish")
        return step_folders.complete_steps(self.directory), ignored

    def _finish(
        self, save: _Save, directory: Path, items: dict[str, str], futures, tickets: list[int]
    ) -> None:
        """In a thread: waits for the arrays, then completes the step or removes it."""
        try:
            processes.all_do(lambda: [future.result() for future in futures], tickets[0])
            processes.first_does(lambda: self._commit(directory, items), tickets[1])
        except Exception as error:
            save.error = error
            processes.first_does(lambda: step_folders.remove(directory), tickets[2])
        else:
            save.notes = processes.first_does(lambda: self._tidy(directory), tickets[2])

    def _commit(self, directory: Path, items: dict[str, str]) -> None:
        self._store.complete(directory)
        for name, text in items.items():
            (directory / name).mkdir()
            integrity.write_durably(directory / name / "metadata", text)
        integrity.sync_files(directory)
        step_folders.complete(directory)

    def _tidy(self, newest: Path) -> list[str]:
        """Deletes old steps and lists the files of the new one; what went wrong with that."""
        notes = []
        for old in step_folders.complete_steps(self.directory)[: -self._keep]:
            if why := step_folders.delete(self.directory / str(old)):
                notes.append(f"checkpoint of step {old} could not be deleted: {why}")
        try:
            integrity.write_files(newest)
        except OSError as error:
            notes.append(
                f"{newest / integrity.FILES} could not be written: {integrity.plain(error)}; the "
                "checkpoint is good, but damage to it could not be traced to a file"
            )
        return notes

    def _settle(self, quiet: bool = False) -> None:
        """Waits for the save under way, if any, and takes note of how it went."""
        if not self._pending:
            return
        self._pending.thread.join()
        save, self._pending = self._pending, None
        for note in save.notes:
            self._tell(note)
        if save.error:
            self._fail(save.step, save.error, quiet)
        else:
            self._failed = None
            self._steps = sorted([*self._steps, save.step])[-self._keep :]

    def _fail(self, step: int, error: Exception, quiet: bool = False) -> None:
        self._failed = (step, integrity.plain(error))
        if not quiet:
            self._tell(
                f"checkpoint of step {step} could not be written: {self._failed[1]}; "
                f"training goes on, {self._last()}"
            )

    def _tell(self, text: str) -> None:
        if processes.is_first():
            self.report(text)

    def _last(self) -> str:
        latest = self.latest()
        if latest is None:
            return "there is no good checkpoint yet"
        return f"the last good checkpoint is step {latest}"

    def _advice(self) -> str:
        if len(self._steps) > 1:
            return (
                f"{_ADVICE} goes back to the last good one; there are "
                f"{integrity.enumerated([str(step) for step in self._steps[-2::-1]])}."
            )
        return "There is no older one to go back to: start anew, in another --workdir."


def has_checkpoint(workdir: str | Path) -> bool:
    """Whether `workdir` holds a complete checkpoint."""
    return bool(step_folders.complete_steps(Path(workdir) / DIRECTORY))


def _saved_config(path: Path) -> Any:
    return config_lib.from_dict(upgrade(integrity.read_item(path, "config")))


def read_config(workdir: str | Path, *, fallback: bool = False) -> tuple[int, Any]:
    """(step, configuration) of the latest checkpoint of `workdir`.

    fallback: where its configuration is damaged, of the latest one whose is not.
    """
    directory = Path(workdir).absolute() / DIRECTORY

    def read(path: Path) -> tuple[int, Any]:
        return int(path.name), _saved_config(path)

    for step in reversed(step_folders.complete_steps(directory) if fallback else []):
        with contextlib.suppress(DamagedError):
            return read(directory / str(step))
    return _read_latest(directory, read)


def read_params(
    workdir: str | Path, abstract_params: PyTree, which: Literal["ema", "params"] = "ema"
) -> PyTree:
    """The averaged parameters or the last ones of the latest checkpoint, and nothing else of it.

    abstract_params: shapes and dtypes (jax.eval_shape of the stage's init), placed by their
    `sharding` or else on the first device. Raises CheckpointError, naming the arrays that are not
    those of the network or what is damaged.
    """

    def read(path: Path) -> PyTree:
        prints = integrity.read_item(path, "fingerprint")
        with contextlib.closing(array_store.ArrayStore()) as store:
            tree, _ = store.read(
                path, {which: abstract_params}, prints, who="the network", only=which
            )
        return tree[which]

    return _read_latest(Path(workdir).absolute() / DIRECTORY, read)


def digest(workdir: str | Path) -> str:
    """A SHA-256 that names the configuration and the moving average of the latest checkpoint.

    It is made of the checksums that were saved with them. Raises CheckpointError.
    """

    def read(path: Path) -> str:
        prints = integrity.read_item(path, "fingerprint")
        average = {name: value for name, value in prints.items() if name.startswith("ema/")}
        named = [integrity.read_item(path, "config"), average]
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()

    return _read_latest(Path(workdir).absolute() / DIRECTORY, read)


def read_ema(workdir: str | Path, abstract_params: PyTree) -> PyTree:
    """`read_params` of the moving average."""
    return read_params(workdir, abstract_params, "ema")


def _read_latest(directory: Path, read: Callable[[Path], Any]) -> Any:
    if not directory.is_dir():
        raise CheckpointError(f"{directory} does not exist: nothing has been trained there")
    while steps := step_folders.complete_steps(directory):
        path = directory / str(steps[-1])
        try:
            return read(path)
        except DamagedError as error:
            if step_folders.is_complete(path):
                raise DamagedError(
                    f"{error}\nMove that directory elsewhere to read the one before it."
                ) from error
            # A run that is going on has deleted it meanwhile, having written another.
    raise CheckpointError(f"{directory} holds no complete checkpoint")


def _as_dict(state: State) -> dict[str, Any]:
    return {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
