"""Which small faults do the tests not see?

    python -m tests.mutants [--paths PATH ...] [--sample N] [--seed S] [--again] [--work DIR]

Puts faults (`tests.mutations`) into a copy of the repository, one at a time, and runs the tests
that execute the changed lines, until one fails. Every function gets at least one fault, and faults
by which a value does not reach what it is for come first. Each fault has a fresh process, forked
before JAX has started; programs that do not change come from XLA's cache.

DIR/lines holds which test executes which lines, one file for each file of tests; it is made anew
where that file or the package has changed. DIR/judged.jsonl has a line for each fault, and faults
that are there are not run again; with --again those that survived are. Printed at the end: the
numbers, and a table of the survivors. A survivor is a missing test, or makes no difference.
"""

import argparse
import collections
import dataclasses
import gc
import inspect
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import types
from pathlib import Path
from typing import Any

import pytest
from jax._src import xla_bridge

from tests import executed, mutations
from tests.mutations import Mutant

PATHS = ("vdm_jax/stage", "vdm_jax/systems", "vdm_jax/training/step.py")
PATHS += ("vdm_jax/evaluation/suite.py",)
# The tests nearest to a path; those of wiring are near to all.
WIRING = ("tests/test_wiring.py", "tests/test_toy_system.py")
SYSTEMS = tuple(
    f"tests/systems/test_{name}.py"
    for name in ("composition", "distillation", "distilled_loss", "imagen_video", "network")
)
NEAR = {
    "vdm_jax/stage": ("tests/stage", *WIRING),
    "vdm_jax/systems": (*SYSTEMS, *WIRING),
    "vdm_jax/training": ("tests/training/test_step.py", *WIRING),
    "vdm_jax/evaluation": tuple(
        f"tests/evaluation/test_{name}.py"
        for name in ("figures", "suite", "prediction", "action_text", "protocol")
    ),
}
SURVIVED = "survived"
QUICK = 0.3  # seconds of a test that may always be run
LIMIT = 300  # seconds that the tests of a fault may take


class Failure:
    """A plugin of pytest that keeps the first test that fails."""

    first = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport):
        if report.failed and not self.first:
            self.first = report.nodeid


def tests_for(mutant: Mutant, tests: dict[str, dict], seconds: float) -> list[str]:
    """The tests that execute the change, else its statement, else, for what is executed at import,
    its module: one case of each test first, quick ones first, up to `seconds`."""
    for first, last in (*mutant.lines, (1, 10**6)):
        hit = {
            name: test["seconds"]
            for name, test in tests.items()
            if any(first <= line <= last for line in test["lines"].get(mutant.path, ()))
        }
        if hit or (mutant.function[-1:] not in ("", ".") and first == mutant.lines[1][0]):
            break
    if not hit and mutant.function[-1:] in ("", "."):  # of values alone
        hit = {name: test["seconds"] for name, test in tests.items() if test["seconds"] < QUICK}
    cases: dict[str, list] = collections.defaultdict(list)
    for name in sorted(hit, key=hit.get):
        cases[name.partition("[")[0]].append(name)
    order = sorted(
        hit,
        key=lambda name: (hit[name] > QUICK, cases[name.partition("[")[0]].index(name), hit[name]),
    )
    # What is executed at import is slow to judge: a Python of its own, and the module's tests.
    total, most, chosen = 0.0, seconds if last < 10**6 else seconds / 2, []
    for name in order:
        total += hit[name]
        if not chosen or total <= most:
            chosen.append(name)
    return chosen


class Later:
    """In the place of `jax.random.key` while tests are imported: JAX must not start before the
    processes of the faults are forked."""

    def __init__(self, *arguments: Any):
        self.arguments = arguments


class Judge:
    """A plugin of pytest that runs the tests of faults in the place of all tests.

    Modules are imported once. In the process of a fault the code of the changed functions is
    replaced. What is executed at import gets a Python of its own instead.
    """

    def __init__(self, root: Path, work: Path, faults: list[tuple[Mutant, list[str]]]):
        self.root, self.work, self.faults = root, work, faults

    def pytest_configure(self):
        import jax

        self.key, jax.random.key = jax.random.key, Later

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        if xla_bridge.backends_are_initialized():
            raise RuntimeError("a module of tests starts JAX when it is imported")
        self.items = {item.nodeid: item for item in session.items}
        self.functions = collections.defaultdict(list)
        for value in gc.get_objects():
            if isinstance(value, types.FunctionType):
                self.functions[value.__code__].append(value)
        for number, (mutant, tests) in enumerate(self.faults):
            start = time.monotonic()
            by = self.judged(mutant, tests)
            source = (self.root / mutant.path).read_bytes()
            row = dataclasses.asdict(mutant) | {"text": mutant.text(source), "by": by}
            row |= {"tests": len(tests), "seconds": round(time.monotonic() - start, 1)}
            with (self.work / "judged.jsonl").open("a") as out:
                out.write(json.dumps(row) + "\n")
            print(f"{number + 1}/{len(self.faults)} {row['seconds']} s, {by[-60:]}:", end=" ")
            print(mutant.path, mutant.function, row["text"], flush=True)
        return True

    def judged(self, mutant: Mutant, tests: list[str]) -> str:
        """The test that fails, or `SURVIVED`."""
        if not tests:
            return SURVIVED
        codes = self.replaced(mutant)
        if codes is None:
            return self.judged_apart(mutant, tests)

        def run() -> str:
            import jax

            jax.random.key = self.key
            for name, module in list(sys.modules.items()):
                if name.startswith("tests."):
                    for field, value in list(vars(module).items()):
                        if isinstance(value, Later):
                            setattr(module, field, self.key(*value.arguments))
            for function, code in codes:
                function.__code__ = code
            failure = Failure()
            items = [self.items[test] for test in tests]
            items[0].config.pluginmanager.register(failure)
            for item, after in zip(items, [*items[1:], None], strict=True):
                item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
                if failure.first:
                    return failure.first
            return SURVIVED

        answer = executed.in_child(run, self.work / "judge.log", LIMIT)
        return "timeout" if answer is None else answer or "the process died"

    def replaced(self, mutant: Mutant) -> list[tuple[types.FunctionType, types.CodeType]] | None:
        """The functions that change, and their new code; None if more than functions changes."""
        file = self.root / mutant.path
        loaded = [m for m in sys.modules.values() if getattr(m, "__file__", 0) == str(file)]
        if not loaded:
            return None
        source, compiled = file.read_bytes(), loaded[0].__loader__.source_to_code
        old, new = (compiled(text, str(file)) for text in (source, mutant.applied(source)))
        pairs = _pairs(old, new)
        if pairs is None:
            return None
        changed = [(f, after) for before, after in pairs for f in self.functions[before]]
        same = all(len(f.__code__.co_freevars) == len(code.co_freevars) for f, code in changed)
        return changed if changed and same else None

    def judged_apart(self, mutant: Mutant, tests: list[str]) -> str:
        file = self.root / mutant.path
        source, times = file.read_bytes(), (file.stat().st_atime, file.stat().st_mtime)
        command = [
            sys.executable,
            "-B",
            "-m",
            "pytest",
            "-x",
            "-q",
            "-n0",
            "-p",
            "no:cacheprovider",
        ]
        try:
            file.write_bytes(mutant.applied(source))
            done = subprocess.run([*command, *tests], capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return "timeout"
        finally:
            file.write_bytes(source)
            os.utime(file, times)
        if done.returncode == 0:
            return SURVIVED
        failed = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
        return failed[0].split(" - ")[0] if failed else f"exit {done.returncode}"


def _pairs(
    old: types.CodeType, new: types.CodeType, inside: bool = False
) -> list[tuple[types.CodeType, ...]] | None:
    """The functions of a module or a class that differ; None if anything else does.

    inside: of a function, where only the functions that it makes are looked at.
    """

    def parts(code: types.CodeType) -> tuple[list, list]:
        inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
        rest = [const for const in code.co_consts if not isinstance(const, types.CodeType)]
        return inner, [code.co_code, code.co_names, rest]

    (inner, rest), (other_inner, other_rest) = parts(old), parts(new)
    if len(inner) != len(other_inner) or not (inside or repr(rest) == repr(other_rest)):
        return None
    found = []
    for one, two in zip(inner, other_inner, strict=True):
        is_function = bool(one.co_flags & inspect.CO_OPTIMIZED)
        more = _pairs(one, two, inside or is_function)
        if more is None and not is_function:
            return None
        found += [(one, two)] if is_function and one != two else []
        found += more or []
    return found


def draw(mutants: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """`count` of them, one of each function first, those of `WIRING` more often than others."""
    rng = random.Random(seed)
    places = {m: rng.random() * (1 if m.kind in mutations.WIRING else 2) for m in mutants}
    order: dict[tuple, list] = collections.defaultdict(list)
    for mutant in sorted(mutants, key=places.get):
        order[mutant.path, mutant.function].append(mutant)
    first = [ones[0] for ones in order.values()]
    rest = sorted((m for ones in order.values() for m in ones[1:]), key=places.get)
    return [*first, *rest][:count]


def run(args: argparse.Namespace, root: Path, work: Path) -> None:
    """What the command does, in the copy of the repository that `root` is."""
    sources = sorted(
        file
        for path in map(root.joinpath, args.paths)
        for file in (path.rglob("*.py") if path.is_dir() else [path])
    )
    neutral = mutations.neutral_values(sorted(root.glob("vdm_jax/**/*.py")))
    mutants, near = [], set()
    for file in sources:
        path = str(file.relative_to(root))
        mutants += mutations.list_mutants(path, file.read_bytes(), neutral)
        near |= {test for start, tests in NEAR.items() if path.startswith(start) for test in tests}
    files = sorted(
        file
        for path in map(root.joinpath, near)
        for file in (path.rglob("test_*.py") if path.is_dir() else [path])
    )
    tests = executed.executed_lines(root, work, files)
    journal = work / "judged.jsonl"

    def read() -> dict[tuple, dict]:
        rows = map(json.loads, journal.read_text().splitlines() if journal.exists() else [])
        return {(row["path"], row["start"], row["end"], row["new"]): row for row in rows}

    judged = read()
    drawn = draw(mutants, args.sample, args.seed)
    faults = []
    for mutant in drawn:
        key = (mutant.path, mutant.start, mutant.end, mutant.new)
        if key not in judged or (args.again and judged[key]["by"] == SURVIVED):
            faults.append((mutant, tests_for(mutant, tests, args.seconds)))
    if faults:
        wanted = sorted({test.partition("::")[0] for _, chosen in faults for test in chosen})
        plain = ["-q", "-s", "-n0", "-p", "no:cacheprovider"]
        pytest.main([*plain, *wanted], plugins=[Judge(root, work, faults)])
        judged = read()
    found = [judged[m.path, m.start, m.end, m.new] for m in drawn]
    survivors = [row for row in found if row["by"] == SURVIVED]
    print(f"{len(mutants)} faults, {len(drawn)} drawn, {len(survivors)} survived")
    for row in survivors:
        change = row["text"].replace("|", "\\|")
        print(f"| `{row['path']}:{row['lines'][0][0]}` {row['function']} | `{change}` | |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--paths", nargs="+", default=PATHS, help="files and folders to change")
    parser.add_argument("--sample", type=int, default=250, help="how many faults")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=60, help="of tests a fault, as traced")
    parser.add_argument("--again", action="store_true", help="run those again that survived")
    folder = Path(tempfile.gettempdir()) / "mutants"
    parser.add_argument("--work", type=Path, default=folder, help="a folder")
    args = parser.parse_args()
    here, work = Path.cwd(), args.work.resolve()
    copy = work / "copy"
    if here == copy:
        return run(args, copy, work)
    names = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], capture_output=True, text=True, check=True
    )
    shutil.rmtree(copy, ignore_errors=True)
    for name in filter(os.path.isfile, names.stdout.splitlines()):
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, copy / name)
    environment = {
        **os.environ,
        "PYTHONPATH": str(copy),
        "OMP_NUM_THREADS": "1",
        "JAX_COMPILATION_CACHE_DIR": str(work / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, "-m", "tests.mutants", *sys.argv[1:]]
    sys.exit(subprocess.run(command, cwd=copy, env=environment).returncode)


if __name__ == "__main__":
    main()
