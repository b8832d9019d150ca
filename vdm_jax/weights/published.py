"""Published weights as they lie in a folder, `config.json` and safetensors files, read without the
library that wrote them and without pickle.

The first load of a folder records the digests of its files, and later loads compare them."""

import contextlib
import hashlib
import json
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import safetensors
from flax import traverse_util
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vdm_jax.weights import fetch

_INDEX, _SINGLE = "model.safetensors.index.json", "model.safetensors"
# Files beside the tensors that a network is made from.
_OTHERS = ("config.json", "tokenizer.json", "spiece.model", _INDEX)
RECORD = ".vdm_jax_digests.json"
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
}


def read_json(path: Path) -> dict[str, Any]:
    """An object of a JSON file. Raises FileNotFoundError; ValueError naming the file."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: not a JSON file that can be read ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: must hold an object, not {type(content).__name__}")
    return content


def config_value(config: Mapping[str, Any], path: Path, name: str, allowed: Any = None) -> Any:
    """A value of a `config.json`. Raises ValueError where it is missing, or not `allowed`."""
    if name not in config:
        raise ValueError(f"{path}: lacks {name}")
    if allowed is not None and config[name] not in allowed:
        raise ValueError(f"{path}: {name} = {config[name]!r}: allowed are {tuple(allowed)}")
    return config[name]


class Tensors:
    """The tensors of a folder's safetensors files, mapped into memory when they are asked for."""

    def __init__(self, folder: str | Path):
        """Raises FileNotFoundError where there are none; ValueError for files that are broken or
        have changed since the first load (`Digests`)."""
        self.folder = Path(folder).expanduser()
        if (self.folder / _SINGLE).is_file():
            files = [_SINGLE]
        elif (self.folder / _INDEX).is_file():
            index = read_json(self.folder / _INDEX)
            files = sorted(set(config_value(index, self.folder / _INDEX, "weight_map").values()))
        else:
            raise FileNotFoundError(
                f"{self.folder}: neither {_SINGLE} nor {_INDEX} is there. Weights that are there "
                "as a pickle only (pytorch_model.bin) must be converted to safetensors first"
            )
        self._where = {}
        for file in files:
            path = self.folder / file
            if path.parent != self.folder or not path.is_file():
                raise FileNotFoundError(f"{path}: no such file, but {_INDEX} names it")
            try:
                with safetensors.safe_open(path, framework="numpy") as opened:
                    self._where |= dict.fromkeys(opened.keys(), path)
            except (safetensors.SafetensorError, OSError) as error:
                raise ValueError(f"{path}: cannot be read ({error})") from error
        others = [name for name in _OTHERS if (self.folder / name).is_file()]
        self.digests = Digests(self.folder, [*files, *others])

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def names(self) -> set[str]:
        """Of all tensors."""
        return set(self._where)

    def read(self, name: str) -> np.ndarray:
        """One tensor, mapped, in the type that it was saved in. Raises ValueError."""
        if name not in self._where:
            raise ValueError(f"{self.folder}: lacks the tensor {name}")
        path = self._where[name]
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            entry = json.loads(file.read(size))[name]
        if entry["dtype"] not in _DTYPES:
            raise ValueError(
                f"{path}: {name} is of type {entry['dtype']}: allowed are {', '.join(_DTYPES)}"
            )
        begin = 8 + size + entry["data_offsets"][0]
        return np.memmap(path, _DTYPES[entry["dtype"]], "r", begin, tuple(entry["shape"]))


class Digests:
    """The SHA-256 of a folder's files, compared with those of their first load.

    They are kept in `folder`/RECORD or, where that cannot be written, in the cache of this user.
    """

    def __init__(self, folder: Path, files: Sequence[str]):
        """Raises ValueError naming a file that has changed."""
        self._found = {name: _sha256(folder / name) for name in files}
        place = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:32]
        cached = fetch.CACHE.expanduser() / "published" / f"{place}.json"
        self._places = [folder / RECORD, cached]
        self._known: dict[str, str] = {}
        record = next((path for path in self._places if path.is_file()), None)
        if record is None:
            return
        self._places = [record]
        try:
            self._known = {str(k): str(v) for k, v in read_json(record)["files"].items()}
        except (ValueError, KeyError, AttributeError) as error:
            raise ValueError(
                f"{record}: the digests of the first load cannot be read ({error}); delete it if "
                "the files beside it are as published"
            ) from error
        changed = [n for n, digest in self._found.items() if self._known.get(n, digest) != digest]
        if changed:
            raise ValueError(
                f"{', '.join(str(folder / name) for name in changed)}: not as at the first load, "
                f"whose SHA-256 {record} holds; download it again, or if the change was meant, "
                f"delete {record}"
            )

    def keep(self) -> None:
        """Writes the digests that were not known; called once a network was made of the files."""
        if self._found.items() <= self._known.items():
            return
        text = json.dumps({"files": {**self._known, **self._found}}, indent=1)
        for path in self._places:
            with contextlib.suppress(OSError):
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
                partial.write_text(text, encoding="utf-8")
                partial.replace(path)
                return


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_params(
    tensors: Tensors,
    shapes: PyTree,
    name: Callable[[str], str | list[str]],
    dtype: DTypeLike = np.float32,
) -> dict[str, Any]:
    """The parameters of a network of `shapes` (of `jax.eval_shape`), as NumPy arrays of `dtype`.

    name: the published name of a parameter by its path ("layer/query/kernel"); of several, a list,
    to be stacked along the first axis. A kernel is published transposed, with heads and their
    features as one axis. Raises ValueError naming the tensor that is missing or of another shape.
    """
    params = {}
    for path, leaf in traverse_util.flatten_dict(shapes, sep="/").items():
        names = name(path)
        parts = [names] if isinstance(names, str) else names
        shape = leaf.shape if isinstance(names, str) else leaf.shape[1:]
        wanted = _published_shape(shape, path)
        array = np.empty((len(parts), *shape), dtype)
        for row, part in zip(array, parts, strict=True):
            found = tensors.read(part)
            if found.shape != wanted:
                raise ValueError(
                    f"{tensors.folder}: {part} has shape {found.shape}, config.json asks for "
                    f"{wanted}"
                )
            row[...] = (found.T if path.endswith("/kernel") else found).reshape(shape)
        params[path] = array[0] if isinstance(names, str) else array
    tensors.digests.keep()
    return traverse_util.unflatten_dict(params, sep="/")


def _published_shape(shape: tuple[int, ...], path: str) -> tuple[int, ...]:
    """Heads and their features are one axis there: the inputs of a kernel that merges them, which
    is called out, and the outputs of any other."""
    *_, module, leaf = path.split("/")
    if leaf == "bias":
        return (int(np.prod(shape)),)
    if leaf != "kernel":
        return shape
    inputs = len(shape) - 1 if module == "out" else 1
    return int(np.prod(shape[inputs:])), int(np.prod(shape[:inputs]))
