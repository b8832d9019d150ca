"""Imports go one way: cli → pipelines → systems → {training, data, evaluation} → stage → {models,
weights, parallel} → diffusion. No module imports upwards, so that each part can be used alone."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Higher may import lower or equal; a module is found by its longest prefix here.
HEIGHT = {
    "vdm_jax.rules": 1,
    "vdm_jax.diffusion": 1,
    "vdm_jax.parallel.heap": 1,
    "vdm_jax.models": 2,
    "vdm_jax.weights": 2,
    "vdm_jax.parallel": 2,
    "vdm_jax.stage": 3,
    "vdm_jax.config": 5,
    "vdm_jax.upgrade": 4,
    "vdm_jax.data": 4,
    "vdm_jax.evaluation": 4,
    "vdm_jax.training": 5,
    "vdm_jax.systems": 6,
    "vdm_jax.pipelines": 7,
    "vdm_jax": 8,
    "vdm_jax.cli": 9,
    "vdm_jax.studio": 9,
    "vdm_jax.__main__": 9,
    "launch": 10,
    "benchmarks": 9,
}


def height(module: str) -> int | None:
    names = module.split(".")
    for end in range(len(names), 0, -1):
        if ".".join(names[:end]) in HEIGHT:
            return HEIGHT[".".join(names[:end])]
    return None


def imports(path: Path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                # `from vdm_jax import config` imports vdm_jax.config.
                full = f"{node.module}.{alias.name}"
                yield (full if full in HEIGHT else node.module), node.lineno


def test_nothing_imports_upwards():
    files = [p for d in ("vdm_jax", "launch", "benchmarks") for p in (ROOT / d).rglob("*.py")]
    files = [p for p in files if not any(part.startswith(".") for part in p.parts)]
    assert len(files) > 30
    upwards = []
    for path in files:
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        own = height(module)
        assert own is not None, f"{module} has no place in the order"
        for name, line in imports(path):
            if (other := height(name)) is not None and other > own:
                upwards.append(f"{module}:{line} imports {name}")
    assert not upwards


def test_no_two_modules_import_each_other():
    """Not even inside functions, and not by way of others."""
    files = {}
    for path in (ROOT / "vdm_jax").rglob("*.py"):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        files[module] = path
    needs = {}
    for module, path in files.items():
        found = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = {f"{node.module}.{alias.name}" for alias in node.names} & files.keys()
                found |= inside or {node.module}
        needs[module] = found & files.keys() - {module}
    while free := [name for name, others in needs.items() if not others & needs.keys()]:
        for name in free:
            del needs[name]
    assert not needs, f"in a circle, or above one: {sorted(needs)}"
