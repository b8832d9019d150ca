"""What a checkpoint is checked by: fingerprint of its arrays, list of its files, who wrote it.

The fingerprint sees wrong content wherever it came from; the list of files names the file.
"""

import contextlib
import datetime
import functools
import json
import os
import re
import subprocess
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from vdm_jax.parallel import versions

FORMAT = 1  # of a step's directory; a reader refuses a larger one
FILES = "files.json"
SMALL = (
    2**20
)  # bytes: files up to this size are read whole and compared before anything is restored
_ROOT = Path(__file__).parents[2]


class CheckpointError(RuntimeError):
    """A checkpoint that is absent, damaged, of another configuration or not written."""


class DamagedError(CheckpointError):
    """A checkpoint whose content is not what was written."""


# --- arrays -------------------------------------------------------------------------------------


def fingerprint(tree: PyTree) -> dict[str, int]:
    """A 32-bit checksum of every leaf by its path, e.g. {"ema/head/kernel": 123}.

    Computed where the array lives, in integer arithmetic, so it is the same for every sharding and
    number of processes, and moves no array to the host. Element i is weighted by the odd number
    2i + 1, which is invertible modulo 2^32: a change of any one element is always seen, a swap
    almost always.
    """
    sums = {name: _checksum_of(leaf) for name, leaf in named_leaves(tree).items()}
    return {name: int(value) for name, value in jax.device_get(sums).items()}


def wrong_arrays(expected: Mapping[str, int], found: Mapping[str, int]) -> list[str]:
    """The names whose checksums differ, sorted."""
    names = sorted(expected.keys() | found.keys())
    return [name for name in names if expected.get(name) != found.get(name)]


def named_leaves(tree: PyTree) -> dict[str, Any]:
    """The leaves by their path, e.g. "opt_state/1/mu/head/kernel"."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _checksum_of(leaf: Array) -> Array:
    placed = getattr(leaf, "sharding", None)
    if isinstance(placed, jax.sharding.NamedSharding):
        # Every process must be able to read the sum.
        mesh = placed.mesh
        total = _checksum_to(jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))(leaf)
        if mesh.devices.flat[0].platform == "cpu":
            # CPU devices share threads: two sums over devices at once may each hold those that the
            # other waits for.
            jax.block_until_ready(total)
        return total
    return _checksum_to(None)(leaf)


# One leaf at a time: compiled once a shape, where a whole tree would be a program of its own.
@functools.cache
def _checksum_to(place: jax.sharding.Sharding | None) -> Callable[[Array], Array]:
    return jax.jit(_checksum, out_shardings=place)


def _checksum(leaf: Array) -> Array:
    unsigned = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}
    if leaf.dtype == jnp.bool_:
        leaf = leaf.astype(jnp.uint8)
    # 8-byte types, with x64 enabled, become two 4-byte words along a new last axis.
    bits = jax.lax.bitcast_convert_type(leaf, unsigned.get(leaf.dtype.itemsize, jnp.uint32))
    index = functools.reduce(
        jnp.add,
        (
            jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis) * np.uint32(stride % 2**32)
            for axis, stride in enumerate(_strides(bits.shape))
        ),
        jnp.zeros(bits.shape, jnp.uint32),
    )
    return jnp.sum(bits.astype(jnp.uint32) * (2 * index + 1), dtype=jnp.uint32)


def _strides(shape: tuple[int, ...]) -> list[int]:
    return [int(np.prod(shape[axis + 1 :], dtype=np.int64)) for axis in range(len(shape))]


# --- files --------------------------------------------------------------------------------------


def write_files(step: Path) -> None:
    """Writes `step`/files.json: size and CRC-32 of every file below `step`. Raises OSError."""
    files = {
        name: {"size": path.stat().st_size, "crc32": _crc(path)}
        for name, path in _files(step).items()
    }
    # A list that is damaged itself must blame no file.
    text = json.dumps({"files": files, "crc32": zlib.crc32(_canonical(files))}, indent=1)
    temporary = step / f"{FILES}.tmp"
    try:
        write_durably(temporary, text)
        temporary.replace(step / FILES)
    except OSError:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def wrong_files(step: Path, *, thorough: bool) -> list[str] | None:
    """What is wrong with the files below `step`, a phrase each; None without a list of them.

    thorough: reads every file; otherwise the sizes are compared, and the content of small files.
    The fingerprint, which is compared with the arrays themselves, is left to that: its names tell
    more than its file. Raises CheckpointError where reading is not allowed.
    """
    listed = _listed(step)
    if listed is None:
        return None
    phrases = []
    for name, entry in listed.items():
        read = thorough or (entry["size"] <= SMALL and name != "fingerprint/metadata")
        if phrase := _wrong_file(step / name, name, entry, read=read):
            phrases.append(phrase)
    return phrases


def read_item(step: Path, item: str) -> Any:
    """The JSON of one item of a step, compared with the list of files where there is one.

    Raises DamagedError, or CheckpointError where reading is not allowed.
    """
    name = f"{item}/metadata"
    entry = (_listed(step) or {}).get(name)
    if entry and item != "fingerprint" and (phrase := _wrong_file(step / name, name, entry)):
        raise DamagedError(f"{step} is damaged: {phrase}")
    try:
        return json.loads((step / name).read_bytes())
    except PermissionError as error:
        raise CheckpointError(f"{step / name} cannot be read: {plain(error)}") from error
    except FileNotFoundError as error:
        raise DamagedError(f"{step} is damaged: {name} is missing") from error
    except (OSError, ValueError) as error:
        raise DamagedError(f"{step} is damaged: {name} cannot be read") from error


def write_durably(path: Path, text: str) -> None:
    """Writes a file that is on the disk when this returns. Raises OSError."""
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def sync_files(directory: Path) -> None:
    """Returns when every file and directory below `directory` is on the disk. Raises OSError."""
    for path in [directory, *directory.rglob("*")]:
        sync(path)


def sync(path: Path) -> None:
    """Returns when a file, or the list of a directory's files, is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _wrong_file(path: Path, name: str, entry: Mapping[str, int], read: bool = True) -> str:
    try:
        size = path.stat().st_size
        if size != entry["size"]:
            return f"{name} holds {size} bytes of the {entry['size']} that were written"
        if read and _crc(path) != entry["crc32"]:
            return f"{name} is not what was written (its checksum differs)"
    except FileNotFoundError:
        return f"{name} is missing"
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {plain(error)}") from error
    except OSError as error:
        return f"{name} cannot be read ({plain(error)})"
    return ""


def _files(step: Path) -> dict[str, Path]:
    return {
        path.relative_to(step).as_posix(): path
        for path in sorted(step.rglob("*"))
        if path.is_file() and not (path.parent == step and path.name.startswith(FILES))
    }


def _listed(step: Path) -> dict[str, dict[str, int]] | None:
    try:
        content = json.loads((step / FILES).read_bytes())
        files = content["files"]
        return files if zlib.crc32(_canonical(files)) == content["crc32"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _canonical(files: Mapping[str, Any]) -> bytes:
    return json.dumps(files, sort_keys=True).encode()


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(2**20):
            crc = zlib.crc32(block, crc)
    return crc


# --- who wrote it -------------------------------------------------------------------------------


def provenance() -> dict[str, Any]:
    """The code, libraries, size and time of this run, as a checkpoint keeps them."""
    return {
        "format": FORMAT,
        "vdm_jax": versions.installed("vdm_jax"),
        "commit": commit(),
        "jax": versions.installed("jax"),
        "flax": versions.installed("flax"),
        "optax": versions.installed("optax"),
        "orbax": versions.installed("orbax-checkpoint"),
        "processes": jax.process_count(),
        "devices": jax.device_count(),
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def other_code(written_by: Mapping[str, Any]) -> str:
    """ "vdm_jax 0.1.0 (commit 1234567), this is …" where the code that wrote differs, "" if not."""
    old = (written_by.get("vdm_jax", ""), written_by.get("commit", ""))
    new = (versions.installed("vdm_jax"), commit())
    if old[0] == new[0] and (old[1] == new[1] or not old[1] or not new[1]):
        return ""
    names = [
        f"vdm_jax {version or '(unknown version)'}" + (f" (commit {sha[:10]})" if sha else "")
        for version, sha in (old, new)
    ]
    return f"{names[0]}, this is {names[1]}"


@functools.cache
def commit() -> str:
    """The git commit of this code, "" when it does not run from its own repository."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD", "--show-toplevel"],
            cwd=_ROOT,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    lines = done.stdout.splitlines()
    # An installed package may lie inside a repository of something else.
    own = done.returncode == 0 and len(lines) == 2 and Path(lines[1]).resolve() == _ROOT.resolve()
    return lines[0] if own else ""


# --- words --------------------------------------------------------------------------------------


def plain(error: BaseException) -> str:
    """An error in a few words: "No space left on device" rather than a call's whole story."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = str(error).strip()
    if re.match(r"[A-Z_]{6,}: ", text):
        # TensorStore: CODE: the outer call: … : what was wrong [details]
        text = re.split(r" \[\w+=", text)[0].rsplit(": ", 1)[-1]
    return (text.splitlines() or [type(error).__name__])[0][:300]


def enumerated(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
