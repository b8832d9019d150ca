"""Kills a training run again and again and compares what comes out with a run left in peace.

    python -m tests.soak --rounds=20 [--seed=0] [--steps=N] [--folder=DIR]

Trains a tiny model on three short videos, on the CPU, to the end. Then trains it once more in
another working directory, where the process gets SIGKILL or SIGTERM (or the second after the first)
at a random moment of each round: while it starts, between updates, while a checkpoint is being
written. The same command starts it again each time. At the end every array of the two last
checkpoints must be equal bit for bit, and so must the losses that both runs logged.

One line a round tells what happened. A round takes about as long as starting `launch.train`: 5 to
15 seconds. Exit status: 0 bit-identical, 1 not, or a run that failed by itself, 2 wrong arguments.
"""

import argparse
import dataclasses
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from tests import tiny
from vdm_jax.training import step_folders

ROOT = Path(__file__).parents[1]
EVERY = 5  # updates from checkpoint to checkpoint
STOPPED = 75  # the exit status that asks for the same command again
PATIENCE = 300  # seconds for anything that a process is waited for


class SoakError(RuntimeError):
    """A run that ended by itself where it should not have."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to happen in a round: `how` a process is stopped, `when`, and after which update."""

    how: str  # "SIGKILL", "SIGTERM", "SIGTERM, SIGKILL"
    when: str  # "starting", "training", "saving"
    after: int
    delay: float  # seconds


def soak(
    folder: Path,
    rounds: int,
    steps: int,
    seed: int = 0,
    report: Callable[[str], object] = print,
) -> list[str]:
    """Both runs, in `folder`; what differs at the end. Raises SoakError."""
    folder = Path(folder)
    config = tiny.write_config(folder, steps, every=EVERY, keep=2)
    peace = Run(folder, config, "peace")
    peace.finish()
    report(f"left in peace: {peace.latest()} updates; the first after {peace.begun:.1f} s")

    rng = random.Random(seed)
    for number in range(1, rounds + 1):
        run = Run(folder, config, "killed")
        resumed = run.latest()
        plan = make_plan(rng, resumed, steps * number // (rounds + 1), peace.begun)
        run.stop(plan)
        report(
            f"round {number:3}  resumed from {resumed:5}  {plan.how:16} while {plan.when:8} after "
            f"update {run.update:5}  {run.seconds:5.1f} s  exit {run.process.returncode:3}  "
            f"left {run.latest():5}"
        )
        if run.latest() == steps:
            break
    killed = Run(folder, config, "killed")
    resumed = killed.latest()
    killed.finish()
    report(f"the rest: resumed from {resumed}, {killed.latest()} updates")
    return compare(peace, killed)


def make_plan(rng: random.Random, resumed: int, limit: int, begun: float) -> Plan:
    """limit: the last update after which the process may be stopped, so that rounds are left.
    begun: seconds from the start of a process to its first update."""
    how = rng.choices(["SIGKILL", "SIGTERM", "SIGTERM, SIGKILL"], [5, 3, 2])[0]
    when = rng.choices(["starting", "training", "saving"], [2, 3, 5])[0]
    after = rng.randint(resumed + 1, max(resumed + 1, limit))
    longest = {"starting": begun, "training": 0.02, "saving": 0.06}[when]
    return Plan(how=how, when=when, after=after, delay=rng.uniform(0, longest))


class Run:
    """One process of `launch.train`, from its start."""

    def __init__(self, folder: Path, config: Path, name: str):
        self.checkpoints = folder / name / "checkpoints"
        self.log = folder / name / "metrics.jsonl"
        self.update = 0  # the last one that the process told of
        self.begun = self.seconds = 0.0  # from the start to the first update, and to the end
        self._lines: list[str] = []
        self._started = time.monotonic()
        arguments = [f"--config={config}", f"--workdir={folder / name}"]
        # Both runs from one cache, or a compiler that is free to choose would be compared too.
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(folder / "cache"))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "launch.train", *arguments],
            cwd=ROOT,
            env={
                **os.environ,
                "JAX_COMPILATION_CACHE_DIR": cache,
                "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
                "PYTHONUNBUFFERED": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def latest(self) -> int:
        """The last complete checkpoint's step, 0 when there is none."""
        return max(step_folders.complete_steps(self.checkpoints), default=0)

    def finish(self) -> None:
        """Waits for the end of the run."""
        self._wait()
        if self.process.returncode != 0:
            raise self._error("did not finish")

    def stop(self, plan: Plan) -> None:
        """Carries out `plan`, unless the run is at its end before."""
        if plan.when != "starting":
            self._until(lambda: self.update >= plan.after)
        if plan.when == "saving":
            self._until(self._is_saving)
        time.sleep(plan.delay)
        first, *then = plan.how.split(", ")
        self.process.send_signal(signal.Signals[first])
        if then:
            self._until(self._is_saving)
            self.process.send_signal(signal.SIGKILL)
        self._wait()
        by_signal = (-signal.SIGKILL, -signal.SIGTERM, STOPPED, 0)
        if self.process.returncode not in by_signal:
            raise self._error(f"was to end by {plan.how} while {plan.when}")

    def _read(self) -> None:
        for line in self.process.stdout:
            self._lines.append(line)
            if told := re.match(r"step (\d+)/", line):
                self.update = int(told[1])
                self.begun = self.begun or time.monotonic() - self._started

    def _is_saving(self) -> bool:
        return any(self.checkpoints.glob(f"*/{step_folders.UNFINISHED}"))

    def _until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + PATIENCE
        while not condition() and self.process.poll() is None:
            if time.monotonic() > deadline:
                self.process.kill()
                raise self._error("hangs")
            time.sleep(0.001)

    def _wait(self) -> None:
        try:
            self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise self._error("does not end") from None
        self._reader.join()
        self.seconds = time.monotonic() - self._started

    def _error(self, what: str) -> SoakError:
        self.process.wait()
        self._reader.join()
        output = "".join(self._lines[-30:])
        return SoakError(f"the run {what} (exit {self.process.returncode}):\n{output}")


def compare(one: Run, other: Run) -> list[str]:
    """What differs between the last checkpoints and the logs of two runs, a line each."""
    differences = []
    if one.latest() != other.latest():
        differences.append(f"the last step: {one.latest()} and {other.latest()}")
    arrays, others = (read_arrays(run.checkpoints / str(run.latest())) for run in (one, other))
    for name in sorted(arrays.keys() | others.keys()):
        if name not in arrays or name not in others or not same(arrays[name], others[name]):
            differences.append(name)
    losses, other_losses = (read_losses(run.log) for run in (one, other))
    for step in sorted(losses.keys() & other_losses.keys()):
        if losses[step] != other_losses[step]:
            differences.append(f"loss of update {step}: {losses[step]} and {other_losses[step]}")
    return differences


def same(one: np.ndarray, other: np.ndarray) -> bool:
    return (
        one.dtype == other.dtype
        and one.shape == other.shape
        and one.tobytes() == other.tobytes()  # NaN equals itself, 0 is not -0
    )


def read_arrays(step: Path) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its path, read by Orbax alone."""
    state = epath.Path(step / "state")
    handler = ocp.PyTreeCheckpointHandler()
    tree = handler.metadata(state).tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    arrays = handler.restore(state, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): np.asarray(leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }


def read_losses(log: Path) -> dict[int, tuple[float, float]]:
    """(loss, gradient norm) of the updates in a log. Lines that a kill took away are not there."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return {line["step"]: (line["loss"], line["grad_norm"]) for line in lines if "loss" in line}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=20, help="how often it is stopped")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--steps", type=int, help="updates in all (default: 20 a round and 20)")
    parser.add_argument("--folder", type=Path, help="where the runs go (default: a temporary one)")
    options = parser.parse_args(arguments)
    steps = options.steps or 20 * (options.rounds + 1)
    if options.rounds < 1 or steps < 2 * EVERY * (options.rounds + 1):
        parser.error(f"--steps must be at least {2 * EVERY} a round and {2 * EVERY}")
    if options.folder and options.folder.is_dir() and any(options.folder.iterdir()):
        parser.error(f"--folder={options.folder} is not empty")
    jax.config.update("jax_platforms", "cpu")
    # Compiling is most of a round; how well it is done is not the question.
    os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
    try:
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.folder or Path(temporary)
            differences = soak(folder, options.rounds, steps, options.seed, report=say)
    except SoakError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if differences:
        print("they differ:\n  " + "\n  ".join(differences))
        return 1
    print("bit-identical")
    return 0


def say(text: str) -> None:
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
