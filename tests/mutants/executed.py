"""Which lines of the package each test executes: what `tests.mutants` chooses tests by."""

import collections
import hashlib
import json
import os
import signal
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


class Lines:
    """A plugin of pytest that records which lines of the package each test executes.

    What a fixture executes counts for every test that uses it. Compiled functions and results that
    are kept are dropped before each test, so that it executes all that it depends on.
    """

    def __init__(self, folder: Path):
        self.folder, self.kept = f"{folder}/vdm_jax/", {}
        self.tests: dict[str, set] = collections.defaultdict(set)
        self.fixtures: dict[str, set] = collections.defaultdict(set)
        self.seconds: dict[str, float] = {}
        self.now: set = set()

    def _trace(self, frame: types.FrameType, event: str, argument: Any) -> Callable | None:
        code = frame.f_code
        if code not in self.kept:
            name = code.co_filename
            ours = name.startswith(self.folder)
            self.kept[code] = name[len(self.folder) - len("vdm_jax/") :] if ours else None
        path = self.kept[code]
        if path is None:
            return None

        def line(frame: types.FrameType, event: str, argument: Any) -> Callable:
            self.now.add((path, frame.f_lineno))
            return line

        return line

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item):
        import jax

        jax.clear_caches()
        for name, module in list(sys.modules.items()):
            if name.startswith(("tests.", "vdm_jax.")):
                for value in vars(module).values():
                    if callable(getattr(value, "cache_clear", None)):
                        value.cache_clear()
        self.now, start = self.tests[item.nodeid], time.monotonic()
        sys.settrace(self._trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            self.seconds[item.nodeid] = time.monotonic() - start
            for name in item.fixturenames:
                self.tests[item.nodeid] |= self.fixtures[name]

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any, request: Any):
        before, self.now = self.now, self.fixtures[fixturedef.argname]
        try:
            return (yield)
        finally:
            self.now = before


def in_child(function: Callable[[], str], log: Path, limit: float) -> str | None:
    """What a function returns in a process of its own; None if that takes more than `limit`
    seconds, "" if the process dies. It prints to `log`."""
    answer = log.with_suffix(".answer")
    answer.unlink(missing_ok=True)
    if (child := os.fork()) == 0:
        os.setsid()
        with log.open("wb") as out:
            os.dup2(out.fileno(), 1)
            os.dup2(out.fileno(), 2)
        try:
            answer.write_text(function())
        finally:
            os._exit(0)
    end = time.monotonic() + limit
    try:
        while os.waitpid(child, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return None
            time.sleep(0.02)
    except BaseException:
        os.killpg(child, signal.SIGKILL)
        raise
    return answer.read_text() if answer.exists() else ""


def digest(*paths: Path) -> str:
    """A hash of files."""
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(paths))).hexdigest()[:16]


def executed_lines(root: Path, work: Path, files: list[Path]) -> dict[str, dict]:
    """For each test of the files its seconds and the lines that it executes, {path: [line]}."""
    package = digest(*root.glob("vdm_jax/**/*.py"))
    found = {}
    for file in files:
        kept = work / "lines" / f"{file.stem}_{digest(file)}_{package}.json"
        kept.parent.mkdir(parents=True, exist_ok=True)
        if not kept.exists():
            print(f"lines of {file.relative_to(root)}", flush=True)

            def record(file: Path = file) -> str:
                lines = Lines(root)
                pytest.main(["-q", "-n0", "-p", "no:cacheprovider", str(file)], plugins=[lines])
                tests = {}
                for test, places in lines.tests.items():
                    by_path: dict[str, list] = collections.defaultdict(list)
                    for path, line in places:
                        by_path[path].append(line)
                    tests[test] = {"seconds": lines.seconds[test], "lines": by_path}
                return json.dumps(tests)

            answer = in_child(record, work / "lines.log", 1800)
            if not answer:
                raise RuntimeError(f"{file}: see {work}/lines.log")
            kept.write_text(answer)
        found |= json.loads(kept.read_text())
    return found
