"""Which small faults do the tests not see?

    python -m tests.mutants [--paths PATH ...] [--sample N] [--seed S] [--again] [--work DIR]

Puts faults (`faults.py`) into a copy of the repository, one at a time, and runs the tests that
execute the changed lines, until one fails. Every function gets at least one fault. Faults by which
a value does not reach what it is for are drawn twice as often as others. Each fault has a process
of its own (`judging.py`). The work tree is never changed.

DIR/lines holds which test executes which lines (`executed.py`), one file for each file of tests. It
is made anew where that file or the package has changed. DIR/judged.jsonl has a line for each fault.
Faults that are there are not run again; with --again those that survived are. Printed at the end:
the numbers, and a table of the survivors. A survivor is a missing test, or makes no difference.
"""

import argparse
import collections
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.mutants import executed, faults
from tests.mutants.faults import Mutant
from tests.mutants.judging import SURVIVED, Judge

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
        for name in ("figures", "suite", "prediction", "action_text", "protocol", "clips")
    ),
}
QUICK = 0.3  # seconds of a test that may always be run


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


def draw(mutants: list[Mutant], count: int, seed: int) -> list[Mutant]:
    """`count` of them, one of each function first, those of `WIRING` more often than others."""
    rng = random.Random(seed)
    places = {m: rng.random() * (1 if m.kind in faults.WIRING else 2) for m in mutants}
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
    neutral = faults.neutral_values(sorted(root.glob("vdm_jax/**/*.py")))
    mutants, near = [], set()
    for file in sources:
        path = str(file.relative_to(root))
        mutants += faults.list_mutants(path, file.read_bytes(), neutral)
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
    chosen = []
    for mutant in drawn:
        key = (mutant.path, mutant.start, mutant.end, mutant.new)
        if key not in judged or (args.again and judged[key]["by"] == SURVIVED):
            chosen.append((mutant, tests_for(mutant, tests, args.seconds)))
    if chosen:
        wanted = sorted({test.partition("::")[0] for _, its in chosen for test in its})
        plain = ["-q", "-s", "-n0", "-p", "no:cacheprovider"]
        pytest.main([*plain, *wanted], plugins=[Judge(root, work, chosen)])
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
