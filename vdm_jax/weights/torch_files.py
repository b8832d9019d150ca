"""Tensors of PyTorch's files (`.pt`, `.pth`, `.pkl` of torch 1.6 or newer), without running them.

Such a file is a zip archive: a pickle that says how tensors lie in storages, and a member for each
storage. A pickle is a program. Here its opcodes are read one by one (`pickletools`); the few that
build tuples, dictionaries and tensors have a meaning, and anything else is an error. Nothing is
imported or called by a name in the file.
"""

import pickletools
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

_DTYPES = {
    "DoubleStorage": np.float64,
    "FloatStorage": np.float32,
    "HalfStorage": np.float16,
    "BFloat16Storage": ml_dtypes.bfloat16,
    "LongStorage": np.int64,
    "IntStorage": np.int32,
    "ByteStorage": np.uint8,
    "BoolStorage": np.bool_,
}
_MARK = object()


class _Name(NamedTuple):
    """What a pickle names: never looked up."""

    module: str
    name: str


class _Storage(NamedTuple):
    """A member of the archive, and what its numbers are."""

    member: str
    dtype: Any
    size: int


class _Tensor(NamedTuple):
    """A view of a storage; offset and strides count numbers."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


_ORDERED = _Name("collections", "OrderedDict")
_REBUILD = _Name("torch._utils", "_rebuild_tensor_v2")
_PARAMETER = _Name("torch._utils", "_rebuild_parameter")


def read(file: str | Path | BinaryIO, what: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of a file by name; those of inner dictionaries are at OUTER.INNER.

    Values that are no tensors, such as numbers of epochs, are left out.

    file: a path, or an open binary file. what: its name, for errors. Raises FileNotFoundError;
    ValueError for another kind of file, and for a pickle that asks for more than tensors, naming
    what it asks for.
    """
    what = what or str(file)
    if isinstance(file, str | Path) and not Path(file).is_file():
        raise FileNotFoundError(f"{what}: no such file")
    try:
        with zipfile.ZipFile(file) as archive:
            return _read_archive(archive, what)
    except (zipfile.BadZipFile, KeyError, IndexError, TypeError, AttributeError) as error:
        raise ValueError(f"{what}: not a file of tensors that torch saved ({error})") from error


def _read_archive(archive: zipfile.ZipFile, what: str) -> dict[str, np.ndarray]:
    programs = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(programs) != 1:
        raise ValueError(f"{what}: not a file of tensors that torch saved (no data.pkl in it)")
    root = programs[0].removesuffix("data.pkl")
    order = f"{root}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise ValueError(f"{what}: its numbers are big-endian, and only little-endian are read")
    tree = _interpret(archive.read(programs[0]), what)
    if not isinstance(tree, dict):
        raise ValueError(f"{what}: holds a {type(tree).__name__}, not a dictionary of tensors")
    storages: dict[str, np.ndarray] = {}
    found = {}
    for name, tensor in _flat(tree).items():
        storage = tensor.storage
        if storage.member not in storages:
            content = archive.read(f"{root}data/{storage.member}")
            storages[storage.member] = np.frombuffer(content, storage.dtype)
        found[name] = _view(storages[storage.member], tensor, f"{what}: {name}")
    return found


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, _Tensor]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        elif isinstance(value, _Tensor):
            flat[f"{prefix}{name}"] = value
    return flat


def _view(storage: np.ndarray, tensor: _Tensor, what: str) -> np.ndarray:
    """A copy of a tensor. Raises ValueError where it reaches beyond its storage."""
    sizes = (tensor.offset, *tensor.shape, *tensor.strides)
    if len(tensor.shape) != len(tensor.strides) or any(
        type(size) is not int or size < 0 for size in sizes
    ):
        raise ValueError(f"{what}: shape {tensor.shape}, strides {tensor.strides} make no tensor")
    steps = zip(tensor.shape, tensor.strides, strict=True)
    last = tensor.offset + sum((size - 1) * stride for size, stride in steps)
    if 0 in tensor.shape:
        return np.empty(tensor.shape, storage.dtype)
    if last >= len(storage):
        raise ValueError(f"{what}: reaches beyond its storage of {len(storage)} numbers")
    strides = tuple(stride * storage.itemsize for stride in tensor.strides)
    view = np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides)
    return np.array(view)


def _interpret(program: bytes, what: str) -> Any:
    """What a pickle builds. Raises ValueError for an opcode or a name without a meaning here."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}

    def popped() -> list[Any]:
        """The values above the last mark, which is taken away with them."""
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
        values = stack[at + 1 :]
        del stack[at:]
        return values

    for name, argument in _opcodes(program, what):
        if name in ("PROTO", "FRAME"):
            continue
        if name == "STOP":
            return stack.pop()
        if name == "MARK":
            stack.append(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        elif name in ("BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"):
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("EMPTY_DICT", "EMPTY_LIST"):
            stack.append({} if name == "EMPTY_DICT" else [])
        elif name == "TUPLE":
            stack.append(tuple(popped()))
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name == "GLOBAL":
            stack.append(_named(argument, what))
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop(), what))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            stack.append(_built(function, arguments, what))
        elif name in ("SETITEM", "SETITEMS"):
            pairs = popped() if name == "SETITEMS" else [stack.pop(-2), stack.pop()]
            _dictionary(stack[-1], what).update(zip(pairs[::2], pairs[1::2], strict=True))
        elif name == "BUILD":
            stack.pop()  # attributes of a dictionary, such as a module's versions
            _dictionary(stack[-1], what)
        else:
            raise ValueError(f"{what}: its pickle has the opcode {name}: only tensors are read")


def _opcodes(program: bytes, what: str) -> Iterator[tuple[str, Any]]:
    """The names and arguments of a pickle's opcodes. Raises ValueError for a damaged one."""
    try:
        for opcode, argument, _ in pickletools.genops(program):
            yield opcode.name, argument
    except ValueError as error:
        raise ValueError(f"{what}: its pickle is damaged ({error})") from error


_CONSTANTS = {"EMPTY_TUPLE": (), "NEWFALSE": False, "NEWTRUE": True, "NONE": None}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def _named(argument: str, what: str) -> _Name:
    module, _, name = argument.partition(" ")
    found = _Name(module, name)
    allowed = module == "torch" and name in _DTYPES
    if not allowed and found not in (_ORDERED, _REBUILD, _PARAMETER):
        raise ValueError(f"{what}: its pickle asks for {module}.{name}: only tensors are read")
    return found


def _storage(identity: Any, what: str) -> _Storage:
    """The storage of ("storage", kind, member, device, numbers)."""
    if not isinstance(identity, tuple) or len(identity) != 5 or identity[0] != "storage":
        raise ValueError(f"{what}: its pickle names {identity!r}, which is no storage")
    _, kind, member, _, size = identity
    if not isinstance(kind, _Name) or kind.name not in _DTYPES or not str(member).isdigit():
        raise ValueError(f"{what}: its pickle names {identity!r}, which is no storage")
    return _Storage(str(member), _DTYPES[kind.name], size)


def _built(function: Any, arguments: Any, what: str) -> Any:
    if function == _ORDERED and arguments == ():
        return {}
    if function == _REBUILD and isinstance(arguments[0], _Storage):
        return _Tensor(*arguments[:4])
    if function == _PARAMETER and isinstance(arguments[0], _Tensor):
        return arguments[0]
    raise ValueError(f"{what}: its pickle calls {function!r}: only tensors are read")


def _dictionary(value: Any, what: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{what}: its pickle changes a {type(value).__name__}")
    return value
