"""The software of a process, and its comparison between the processes of a run.

Two hosts that were installed on different days may have other releases. Their programs then differ,
and a collective waits for a partner that never calls it. So the processes compare before JAX looks
for devices.
"""

import functools
import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path

# What a compiled program, its numbers or a checkpoint depend on.
PACKAGES = (
    "jax",
    "jaxlib",
    "libtpu",
    "jax-cuda12-plugin",
    "jax-cuda13-plugin",
    "flax",
    "optax",
    "orbax-checkpoint",
    "tensorstore",
    "numpy",
    "ml_dtypes",
    "einops",
    "grain",
    "array_record",
)
CODE = "the code of vdm_jax"
_MOST = 8  # processes that a message names


@functools.cache
def installed(package: str) -> str:
    """The version of an installed package, "" where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


@functools.cache
def code() -> str:
    """A digest of this package's source files, 12 hexadecimal digits."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()[:12]


def own() -> dict[str, str]:
    """The software of this process: Python, `PACKAGES` and the code, by name."""
    packages = {name: installed(name) for name in PACKAGES}
    major, minor, _ = platform.python_version_tuple()
    return {"Python": f"{major}.{minor}", **packages, CODE: code()}


def differences(hosts: Sequence[str], software: Sequence[Mapping[str, str]]) -> list[str]:
    """A line for each name that is not the same everywhere, compared with process 0.

    hosts, software: of every process, in order; `software` as `own` returns it.
    """
    lines = []
    for name in dict.fromkeys(name for each in software for name in each):
        first = software[0].get(name, "")
        others = [i for i, each in enumerate(software) if each.get(name, "") != first]
        if not others:
            continue
        named = [
            f"process {i} on {hosts[i]}: {software[i].get(name) or 'not installed'}"
            for i in others[:_MOST]
        ]
        more = f"; and {len(others) - _MOST} more" if len(others) > _MOST else ""
        start = f"process 0 on {hosts[0]}: {first or 'not installed'}"
        lines.append(f"{name}: {start}; {'; '.join(named)}{more}")
    return lines
