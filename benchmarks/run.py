"""Times this library against its peers: training and sampling, memory, compilation, data.

    python -m benchmarks.run [--peers=NAME,NAME] [--works=train,denoise] [--json=FILE] [--quick]

Each pair of `benchmarks.pairs` is a peer's network and one of ours that does the same work. Every
side is a process of its own in each work. In each round all sides take their turn, so that a slow
spell of the machine hits all, and every other round goes backwards. Warm-up is not counted.

  train        forward, loss, backward and update of a batch that is on the device. Ours also casts
               from uint8, clips the gradient, checks that it is finite and averages the weights, as
               launch.train does; a peer runs its own loss, where it has one, and plain Adam
  denoise      the network and one step of a sampler, a batch of clips, without guidance
  sample       one clip, by each side's default sampler and number of steps. A peer that would take
               longer than --budget is stepped for that long and extrapolated, and the table says so
  encode       of the pair `autoencoder`: images to latents
  decode       and back
  memory       the peak of every work before but samples, in fresh processes: above the idle process
               on the CPU, of the allocator on a GPU
  first_clip   from starting a process to its first clip, nothing compiled before
  data         clips a second from disk: our pipeline, and the GIF folder of video-diffusion-pytorch
  shipped      from starting vdm sample to the files of a clip, nothing compiled before

Compilation is timed whenever something is compiled: lowering and XLA with an empty cache, or the
first call of torch.compile less a later one. On the CPU the peers also run with glibc told to keep
freed memory, which PyTorch's large buffers gain from. What fails is reported, not skipped.
"""

import argparse
import concurrent.futures
import contextlib
import itertools
import json
import math
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import pairs, report
from benchmarks.serving import Worker, WorkerError

TIMED = ("train", "denoise", "sample", "encode", "decode")
WORKS = (*TIMED, "memory", "first_clip", "data", "shipped")
DTYPES = ("float32", "bfloat16")
MODES = ("eager", "compile")
KEEP_MEMORY = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
}
# Steps of a round, and steps before the first.
STEPS = {"train": 2, "denoise": 4, "sample": 1, "encode": 1, "decode": 1}
WARMUP = {"train": 2, "denoise": 2, "sample": 0, "encode": 1, "decode": 1}
GPU_STEPS = dict.fromkeys(TIMED, 20) | {"sample": 1}
GPU_WARMUP = dict.fromkeys(TIMED, 5) | {"sample": 0}


class Side:
    """One column of the comparison: whose network, in which dtype and mode, and how to start it.

    name: in tables. own: the side of ours that it is compared with.
    """

    def __init__(self, name: str, own: str, command: list[str], variables: dict[str, str]):
        self.name, self.own = name, own
        self._command, self._variables = command, variables

    def start(self, extra: dict[str, str] | None = None) -> Worker:
        """A fresh process; `extra` are more variables of its environment."""
        return Worker(self.name, self._command, {**self._variables, **(extra or {})})


def make_sides(pair: pairs.Pair, options, python: str | None, cache: Path) -> list[Side]:
    """Our side and the peer's, of each dtype and mode that was asked for."""
    common = [f"--pair={pair.name}", f"--batch={options.batch}", f"--device={options.device}"]
    gpu = options.device == "gpu"
    ours_variables = {"JAX_PLATFORMS": "cuda" if gpu else "cpu"}
    if gpu:
        ours_variables["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    sides = []
    for dtype in options.dtypes:
        own = f"vdm_jax {dtype}"
        command = [sys.executable, "-m", "benchmarks.ours", *common, f"--dtype={dtype}"]
        command.append(f"--cache={cache}")
        sides.append(Side(own, own, command, ours_variables))
        if python is None:
            continue
        for mode, keep in itertools.product(options.modes, (False,) if gpu else (False, True)):
            if mode == "compile" and not gpu and not keep:
                continue  # compiled in its best light only: it takes minutes
            name = f"{pair.name} {mode} {dtype}" + (", memory kept" if keep else "")
            command = [python, "-W", "ignore", "-m", "benchmarks.peers.worker", *common]
            command += [f"--dtype={dtype}", f"--mode={mode}"]
            variables = {"TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor")}
            variables |= KEEP_MEMORY if keep else {}
            sides.append(Side(name, own, command, variables))
    return sides


class Turn:
    """A side in one work: its process once that is begun, and what came of it.

    described: what the side is; row: of the table; seconds: of each step, a list a round.
    """

    def __init__(self, side: Side, work: str, options):
        self.side, self.work, self._options = side, work, options
        self.described: dict = {}
        self.row: dict = {}
        self.seconds: list[list[float]] = []
        self._worker: Worker | None = None

    def prepare(self) -> None:
        """Starts the process, which compiles and warms up, unless that was done or has failed."""
        if self._worker is not None or "error" in self.row:
            return
        options, name = self._options, self.side.name
        warmup = (GPU_WARMUP if options.device == "gpu" else WARMUP)[self.work]
        ends = min(time.monotonic() + options.limit, options.ends)
        try:
            if ends < time.monotonic():
                raise WorkerError("not begun: --total was over")
            self._worker = self.side.start()
            self.described = self._worker.ask("describe", limit=ends - time.monotonic())
            print(
                f"{name}: {self.described['parameters']:,} parameters, "
                f"{self.described['flops'] / 1e9:.2f} GFLOP a clip forward, "
                f"{self.described['device']}",
                flush=True,
            )
            self.row |= self._worker.ask(
                "prepare",
                limit=ends - time.monotonic(),
                work=self.work,
                warmup=min(warmup, 1) if options.quick or options.steps else warmup,
            )
        except WorkerError as error:
            self.described = self.described or {"error": str(error)}
            self.row["error"] = str(error)
        print(f"{self.work} prepared, {name}: {self.row}", flush=True)

    def take(self) -> None:
        """Takes a round's turn, unless the side has failed."""
        if "error" in self.row:
            return
        options = self._options
        steps = (GPU_STEPS if options.device == "gpu" else STEPS)[self.work]
        try:
            answer = self._worker.ask(
                "timed",
                limit=options.limit + options.budget,
                work=self.work,
                steps=1 if options.quick else options.steps or steps,
                budget=options.budget,
            )
        except WorkerError as error:
            self.row["error"] = str(error)
            return
        self.seconds.append(answer["seconds"])
        self.row |= {"label": answer["label"]} if "label" in answer else {}

    def close(self, kill: bool = False) -> None:
        """Ends the process."""
        if self._worker is not None:
            self._worker.close(kill)


def make_turns(
    sides: list[Side], options, works: Sequence[str] = TIMED
) -> dict[tuple[str, str], list[Turn]]:
    """All sides' turns in each (work, our side), in the order in which they are timed.

    works: of the pair.
    """
    return {
        (work, own): [Turn(side, work, options) for side in sides if side.own == own]
        for own in dict.fromkeys(side.own for side in sides)
        for work in options.works
        if work in TIMED and work in works
    }


def prepare_all(turns: list[Turn], at_once: int) -> None:
    """Prepares every turn, so many at once."""
    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        try:
            list(pool.map(Turn.prepare, turns))
        except BaseException:  # Ctrl-C: the pool ends when its threads do, which wait for answers
            for turn in turns:
                turn.close(kill=True)
            raise


def run_pair(pair: pairs.Pair, options, sides: list[Side], turns: dict) -> dict:
    """All figures of a pair, as `report.markdown` takes them."""
    described: dict[str, dict] = {}
    seconds: dict[str, dict[str, list]] = {}
    notes: dict[str, dict[str, dict]] = {}
    for (work, _), each in turns.items():
        _time(work, each, options)
        for turn in each:
            if turn.side.name not in described or "error" not in turn.described:
                described[turn.side.name] = turn.described
            notes.setdefault(work, {})[turn.side.name] = turn.row
            if turn.seconds:
                seconds.setdefault(work, {})[turn.side.name] = turn.seconds
    if "memory" in options.works:
        measured = [work for work in pair.works if work != "sample"]
        timed = [work for work in measured if work in options.works] or measured

        def measure(job: tuple[str, Side]) -> None:
            work, side = job
            row = notes.setdefault(work, {}).setdefault(side.name, {})
            if "error" not in row:
                row |= _alone(side, "memory", options, {}, "memory_error", work=work)
                _say(pair, f"memory of {work}, {side.name}", row)

        jobs = list(itertools.product(timed, sides))
        # A peak is of one process, so others beside it do not matter.
        with concurrent.futures.ThreadPoolExecutor(max(options.ahead, 1)) as pool:
            list(pool.map(measure, jobs))
    if "first_clip" in options.works and "sample" in pair.works:
        for side in sides:
            row = _first_clip(side, options)
            notes.setdefault("first_clip", {})[side.name] = row
            _say(pair, f"first clip, {side.name}", row)
    summary = report.summarise(seconds, {side.name: side.own for side in sides})
    works = {
        work: {name: {**summary.get(work, {}).get(name, {}), **row} for name, row in rows.items()}
        for work, rows in notes.items()
    }
    for side in sides:
        if side.name not in described:
            described[side.name] = _alone(side, "describe", options, {}, "error")
    return {
        "name": pair.name,
        "frames": pair.frames,
        "size": pair.size,
        "batch": options.batch,
        "difference": pair.difference,
        "sides": described,
        "works": works,
        "seconds": seconds,
    }


def _time(work: str, turns: list[Turn], options) -> None:
    """Times a work by turns: all sides of a comparison are there at once, and no more."""
    try:
        for turn in turns:
            turn.prepare()
        for number in range(options.rounds):
            # Every other round backwards: no side always comes after the same one.
            for turn in turns if number % 2 == 0 else turns[::-1]:
                turn.take()
            shown = ", ".join(
                f"{turn.side.name} {statistics.median(turn.seconds[-1]):.4f} s"
                for turn in turns
                if len(turn.seconds) > number
            )
            print(f"{work} round {number + 1}/{options.rounds}: {shown}", flush=True)
    finally:
        for turn in turns:
            turn.close()


def _alone(side: Side, operation: str, options, extra: dict, error_key: str, **values) -> dict:
    """The answer of a fresh process to one request, or {error_key: why there is none}."""
    worker = side.start(extra)
    try:
        return worker.ask(operation, limit=options.limit, **values)
    except WorkerError as error:
        return {error_key: str(error)}
    finally:
        worker.close()


def _first_clip(side: Side, options) -> dict:
    """From starting a process to its first clip, with caches that are empty."""
    with tempfile.TemporaryDirectory() as empty:
        extra = {"TORCHINDUCTOR_CACHE_DIR": empty, "JAX_ENABLE_COMPILATION_CACHE": "false"}
        worker = side.start(extra)
        try:
            limit = options.limit + options.budget
            answer = worker.ask("first_clip", limit=limit, budget=options.budget)
            seconds = time.perf_counter() - worker.started + answer["remaining_s"]
        except WorkerError as error:
            return {"error": str(error)}
        finally:
            worker.close()
    return {"median_s": seconds, "min_s": seconds, "max_s": seconds, "label": answer["label"]}


def _say(pair: pairs.Pair, what: str, row: dict) -> None:
    print(f"{pair.name}: {what}: {row}", flush=True)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--peers", default="all", metavar="NAMES", help=f"all, none, or of {', '.join(pairs.PAIRS)}"
    )
    parser.add_argument(
        "--works", default=",".join(WORKS), metavar="NAMES", help=f"default {','.join(WORKS)}"
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu", help="default cpu")
    parser.add_argument(
        "--dtypes",
        metavar="NAMES",
        help="default float32,bfloat16 on a GPU, float32 on a CPU, where bfloat16 is no faster",
    )
    parser.add_argument(
        "--modes", default=",".join(MODES), metavar="NAMES", help="of PyTorch, default both"
    )
    parser.add_argument("--rounds", type=int, default=5, help="default 5")
    parser.add_argument(
        "--steps", type=int, metavar="N", help="of a round, after one before the first"
    )
    parser.add_argument("--batch", type=int, default=4, help="clips, default 4")
    parser.add_argument("--ours_only", action="store_true", help="no peer is installed or run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write FILE and FILE.md")
    parser.add_argument("--peer_python", metavar="PY", help="a Python that has the peers already")
    parser.add_argument(
        "--limit", type=float, default=900, metavar="S", help="for one answer (default 900)"
    )
    parser.add_argument(
        "--budget", type=float, default=60, metavar="S", help="for a peer's sample (default 60)"
    )
    parser.add_argument(
        "--cache_dir", type=Path, metavar="DIR", help="of compiled programs (default: empty, new)"
    )
    parser.add_argument(
        "--ahead",
        type=int,
        default=0,
        metavar="N",
        help="compile all pairs' sides, N at once, before the first is timed, and measure memory "
        "of N sides at once: where cores are many and a GPU's time is short. Seconds of "
        "compilation are then of a busy machine (default 0: each before it is timed)",
    )
    parser.add_argument(
        "--total", type=float, metavar="S", help="what is not compiled after S seconds is left out"
    )
    parser.add_argument("--cores", type=int, metavar="N", help="use the first N cores only")
    parser.add_argument(
        "--max_load", type=float, default=0.5, help="refuse a machine with more load (default 0.5)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one round of one step, float32, eager: does it run?"
    )
    options = parser.parse_args(arguments)
    options.ends = time.monotonic() + (options.total or math.inf)
    options.dtypes = options.dtypes or ",".join(DTYPES if options.device == "gpu" else DTYPES[:1])
    try:
        chosen = [] if options.peers == "none" else pairs.choose(options.peers)
        for name, allowed in (("works", WORKS), ("dtypes", DTYPES), ("modes", MODES)):
            setattr(options, name, choose(name, getattr(options, name), allowed))
    except ValueError as error:
        parser.error(str(error))
    if options.quick:
        options.rounds, options.dtypes, options.modes = 1, ["float32"], ["eager"]
        options.budget = min(options.budget, 5)
    else:
        refuse_if_busy(options.max_load)
    if options.cores:  # inherited by every worker
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: options.cores])

    result = report.header() | {"device": options.device, "rounds": options.rounds, "pairs": []}
    python = None if options.ours_only else options.peer_python
    if python is None and not options.ours_only:
        from benchmarks.peers import install

        python = str(install.install())
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as processes:
        cache = options.cache_dir.resolve() if options.cache_dir else Path(scratch) / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        sides = {pair.name: make_sides(pair, options, python, cache) for pair in chosen}
        turns = {pair.name: make_turns(sides[pair.name], options, pair.works) for pair in chosen}
        every = [turn for each in turns.values() for row in each.values() for turn in row]
        for turn in every:  # the ones that an error or Ctrl-C leaves
            processes.callback(turn.close, kill=True)
        if options.ahead:
            prepare_all(every, options.ahead)
        for pair in chosen:
            result["pairs"].append(run_pair(pair, options, sides[pair.name], turns[pair.name]))
            _write(options.json, result)  # what there is survives what comes
        if "data" in options.works:
            from benchmarks import data

            result["data"] = data.measure(python, Path(scratch), quick=options.quick)
        if "shipped" in options.works:
            from benchmarks import data

            result["shipped"] = data.first_clip_of_shipped(options.device, Path(scratch))
    print("\n" + report.markdown(result))
    for path in _write(options.json, result):
        print(path)
    return 0


def choose(name: str, text: str, allowed: tuple[str, ...]) -> list[str]:
    """The names of a comma-separated list. Raises ValueError, naming what is allowed."""
    names = [part for part in text.split(",") if part]
    if unknown := [part for part in names if part not in allowed]:
        raise ValueError(f"--{name}={text}: {', '.join(unknown)} unknown; of {', '.join(allowed)}")
    return names


def refuse_if_busy(limit: float) -> float:
    """The load of the machine; ends the program where it is above `limit`."""
    load = os.getloadavg()[0]
    if load > limit:
        sys.exit(
            f"the machine is busy (load {load:.2f}, more than {limit:g}): figures would mean "
            "nothing; wait, raise --max_load, or try the program out with --quick"
        )
    return load


def _write(path: Path | None, result: dict) -> list[Path]:
    if path is None:
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".md").write_text(report.markdown(result))
    return [path, path.with_suffix(".md")]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
