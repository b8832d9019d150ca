"""Whether tests see a fault: they run with it, each fault in a process of its own."""

import collections
import dataclasses
import gc
import inspect
import json
import os
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
from jax._src import xla_bridge

from tests.mutants import executed
from tests.mutants.faults import Mutant

SURVIVED = "survived"
LIMIT = 300  # seconds that the tests of a fault may take


class Failure:
    """A plugin of pytest that keeps the first test that fails."""

    first = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport):
        if report.failed and not self.first:
            self.first = report.nodeid


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
