"""Published weights as they lie in a folder, `config.json` and safetensors files, read and written
without the library that made them and without pickle.

The first load of a folder records the digests of its files, and later loads compare them."""

import contextlib
import hashlib
import json
import math
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import safetensors
from flax import traverse_util
from jax.typing import DTypeLike
from jaxtyping import PyTree

from vdm_jax.weights import fetch, tensor_file

TRANSFORMERS, DIFFUSERS = "model", "diffusion_pytorch_model"  # the stems of their files
PIPELINE = "model_index.json"  # of a folder of folders, which lists its parts
# Files beside the tensors that a network is made from.
_OTHERS = ("config.json", "tokenizer.json", "spiece.model")
# In the order in which they are looked for: full precision first.
_VARIANTS = ("", ".fp16")
RECORD = ".vdm_jax_digests.json"
IGNORED = {
    *("_attn_implementation", "_commit_hash", "_name_or_path", "architectures", "dtype"),
    *("attention_dropout", "dropout", "initializer_factor", "initializer_range"),
    *("logit_scale_init_value", "model_type", "torch_dtype", "transformers_version"),
    *("bad_words_ids", "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward"),
    *("cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample"),
    *("early_stopping", "encoder_no_repeat_ngram_size", "exponential_decay_length_penalty"),
    *("finetuning_task", "forced_bos_token_id", "forced_eos_token_id", "id2label", "label2id"),
    *("is_encoder_decoder", "length_penalty", "max_length", "min_length", "no_repeat_ngram_size"),
    *("num_beam_groups", "num_beams", "num_return_sequences", "output_attentions"),
    *("output_hidden_states", "output_scores", "pad_token_id", "prefix", "problem_type"),
    *("remove_invalid_values", "repetition_penalty", "return_dict", "return_dict_in_generate"),
    *("sep_token_id", "suppress_tokens", "task_specific_params", "temperature", "tf_legacy_loss"),
    *("tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class", "top_k", "top_p"),
    *("torchscript", "typical_p", "use_bfloat16"),
}
"""Values of transformers' config.json that are about training, the library, or the generation of
text, which no encoder does."""
_DTYPES = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I64": np.int64,
    "I32": np.int32,
}
SHIPPED = Path(__file__).parents[1] / "checkpoints"
"""Where the models lie that ship with the package."""
_SHARD_BYTES = 10 * 10**9
_PART_BYTES = 16 * 2**20  # of a tensor that is mapped at a time


def find_folder(name: str | Path) -> Path:
    """A folder by its path, or by its name among what ships with the package."""
    path, shipped = Path(name).expanduser(), SHIPPED / name
    return shipped if shipped.is_dir() and not path.is_dir() else path


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


class _Entry(NamedTuple):
    """Where a tensor lies in a file."""

    path: Path
    dtype: str
    shape: tuple[int, ...]
    begin: int


class Tensors:
    """The tensors of a folder's safetensors files, mapped into memory when they are asked for."""

    def __init__(self, folder: str | Path, stem: str = TRANSFORMERS):
        """stem: of the files' names, `STEM.safetensors` or its shards and their index.

        Raises FileNotFoundError where there are none; ValueError for files that are broken or have
        changed since the first load (`Digests`)."""
        self.folder = find_folder(folder)
        files = self._files(stem)
        self._where: dict[str, _Entry] = {}
        for file in files:
            if file.endswith(".safetensors"):
                self._where |= _header(self.folder / file)
        others = [name for name in _OTHERS if (self.folder / name).is_file()]
        self.digests = Digests(self.folder, [*files, *others])

    def _files(self, stem: str) -> list[str]:
        """The files of tensors and, if there is one, their index."""
        tried = []
        for variant in _VARIANTS:
            single = f"{stem}{variant}.safetensors"
            # diffusers writes the variant behind "index", transformers in front of it.
            stems = (f"{stem}.safetensors.index{variant}", f"{stem}{variant}.safetensors.index")
            if (self.folder / single).is_file():
                return [single]
            tried.append(single)
            for index in dict.fromkeys(f"{name}.json" for name in stems):
                if (self.folder / index).is_file():
                    return [index, *self._shards(self.folder / index)]
                tried.append(index)
        pickles = sorted(
            path.name
            for pattern in ("*.bin", "*.ckpt", "*.pt", "*.pth")
            for path in self.folder.glob(pattern)
        )
        instead = (
            f"{', '.join(pickles)}: a pickle, which can execute code when it is read; convert it "
            "to safetensors first (the library that wrote it does, by safe_serialization=True)"
            if pickles
            else "weights that are there as a pickle only must be converted to safetensors first"
        )
        raise FileNotFoundError(f"{self.folder}: none of {', '.join(tried)} is there. {instead}")

    def _shards(self, index: Path) -> list[str]:
        weight_map = config_value(read_json(index), index, "weight_map")
        if not isinstance(weight_map, dict):
            raise ValueError(f"{index}: weight_map must hold an object")
        files = sorted({str(file) for file in weight_map.values()})
        for file in files:
            if Path(file).name != file or not file.endswith(".safetensors"):
                raise ValueError(
                    f"{index}: names {file!r}: allowed are safetensors files of this folder"
                )
            if not (self.folder / file).is_file():
                raise FileNotFoundError(f"{self.folder / file}: no such file, but {index} names it")
        return files

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def names(self) -> set[str]:
        """Of all tensors."""
        return set(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Of one tensor. Raises ValueError."""
        return self._entry(name).shape

    def parts(self, name: str) -> Iterator[tuple[Any, np.ndarray]]:
        """One tensor in the type that it was saved in: an index of rows and those rows, mapped.

        A part is small and its memory is free when it is dropped, because mapped memory is resident
        too, and the largest tensor may be a third of a file. Raises ValueError.
        """
        entry = self._entry(name)
        if entry.dtype not in _DTYPES:
            instead = (
                "; 8-bit floats with scales beside them cannot be read: use the 16-bit file"
                if entry.dtype.startswith("F8")
                else ""
            )
            raise ValueError(
                f"{entry.path}: {name} is of type {entry.dtype}: allowed are "
                f"{', '.join(_DTYPES)}{instead}"
            )
        if 0 in entry.shape:
            return
        dtype = np.dtype(_DTYPES[entry.dtype])
        rows, *rest = entry.shape or (1,)
        row_bytes = dtype.itemsize * math.prod(rest)
        step = max(1, _PART_BYTES // row_bytes)
        for first in range(0, rows, step):
            shape = (min(step, rows - first), *rest)
            part = np.memmap(entry.path, dtype, "r", entry.begin + first * row_bytes, shape)
            yield (slice(first, first + step), part) if entry.shape else (..., part[0])

    def whole(self, name: str) -> np.ndarray:
        """A small tensor, float32. Raises ValueError."""
        tensor = np.zeros(self.shape(name), np.float32)
        for rows, part in self.parts(name):
            tensor[rows] = part
        return tensor

    def _entry(self, name: str) -> _Entry:
        if name not in self._where:
            raise ValueError(f"{self.folder}: lacks the tensor {name}")
        return self._where[name]


def _header(path: Path) -> dict[str, _Entry]:
    """The tensors of a file. Raises ValueError naming it."""
    try:
        with safetensors.safe_open(path, framework="numpy"):
            pass  # checks that header and size belong together
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path}: cannot be read ({error}); it is truncated or no safetensors file: download "
            "it again"
        ) from error
    return {
        name: _Entry(
            path, entry["dtype"], tuple(entry["shape"]), 8 + size + entry["data_offsets"][0]
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def open_file(file: str | Path) -> Tensors:
    """The tensors of one file, whatever its name. Raises FileNotFoundError; ValueError for a file
    that is broken or no safetensors file."""
    file = Path(file).expanduser()
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    if file.suffix != ".safetensors":
        raise ValueError(
            f"{file}: allowed are .safetensors files, which hold no code; convert others first"
        )
    return Tensors(file.parent, file.stem)


class Digests:
    """The SHA-256 of a folder's files, compared with those of their first load.

    They are kept in `folder`/RECORD or, where that cannot be written, in the cache of this user.
    """

    def __init__(self, folder: Path, files: Sequence[str]):
        """Raises ValueError naming a file that has changed."""
        self._found = {name: file_digest(folder / name) for name in files}
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

    @property
    def name(self) -> str:
        """One digest of all of them."""
        return hashlib.sha256(json.dumps(sorted(self._found.items())).encode()).hexdigest()

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


def file_digest(path: str | Path) -> str:
    """The SHA-256 of a file."""
    with Path(path).expanduser().open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Place(NamedTuple):
    """The published name of a parameter.

    ones: how many axes of size 1 the published tensor has behind those of the parameter, such as 2
    where a 1 x 1 convolution is a dense layer here.
    lacks: an axis of size 1 of the parameter, in the published order, that the published tensor
    does not have; None = it has all.
    """

    name: str
    ones: int = 0
    lacks: int | None = None

    def axes(self, array: np.ndarray) -> np.ndarray:
        """A tensor in the published order with the published axes, a view."""
        if self.lacks is not None:
            array = np.squeeze(array, self.lacks)
        return array.reshape((*array.shape, *[1] * self.ones))


Named = str | Place
Name = Callable[[str], Named | Sequence[Named]]
"""The published name of a parameter by its path ("layer/query/kernel"); of several, a list, to be
stacked along the first axis."""


def read_params(
    tensors: Tensors,
    shapes: PyTree,
    name: Name,
    dtype: DTypeLike = np.float32,
    *,
    renamed: Callable[[str], str] = lambda name: name,
    unused: Callable[[str], bool] = lambda name: False,
) -> dict[str, Any]:
    """The parameters of a network of `shapes` (of `jax.eval_shape`), as NumPy arrays of `dtype`.

    Args:
      tensors: of the folder.
      shapes: of the parameters.
      name: see `Name`. Kernels are published transposed: (out, in, *spatial), with heads and their
        features as one axis.
      renamed: the name that `name` uses, of a name in the files, where older files differ.
      unused: whether a tensor in the files, by that name, is known not to be needed.

    Raises ValueError naming the tensors that are missing, left over or of another shape.
    """
    files = {renamed(found): found for found in tensors.names()}
    flat = traverse_util.flatten_dict(shapes, sep="/")
    places = {path: all_places(name(path)) for path in flat}
    wanted = {place.name for parts in places.values() for place in parts}
    if missing := sorted(wanted - set(files)):
        raise ValueError(f"{tensors.folder}: lacks the tensor {listed(missing)}")
    if left := sorted(found for found in set(files) - wanted if not unused(found)):
        raise ValueError(
            f"{tensors.folder}: the network that config.json describes has no {listed(left)}"
        )
    params = {}
    for path, leaf in flat.items():
        stacked = not isinstance(name(path), str | Place)
        shape = leaf.shape[1:] if stacked else leaf.shape
        array = np.empty((len(places[path]), *shape), dtype)
        for number, place in enumerate(places[path]):
            found = tensors.shape(files[place.name])
            view = place.axes(from_ours(array[number, ...], path))
            if found != view.shape:
                raise ValueError(
                    f"{tensors.folder}: {place.name} has shape {found}, config.json asks for "
                    f"{view.shape}"
                )
            for rows, part in tensors.parts(files[place.name]):
                view[rows] = part
        params[path] = array if stacked else array[0, ...]
    tensors.digests.keep()
    return traverse_util.unflatten_dict(params, sep="/")


def write_params(
    folder: str | Path,
    params: PyTree,
    name: Name,
    *,
    config: Mapping[str, Any],
    stem: str = TRANSFORMERS,
    dtype: DTypeLike = np.float32,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Writes `config.json` and the parameters as `read_params` reads them.

    Args:
      folder: is made; files of a published network that are there are an error.
      params: arrays by path, without boxes.
      name: as in `read_params`.
      config: of the network, with the class that the published library loads it by.
      stem: of the files.
      dtype: of the tensors.
      shard_bytes: the largest size of a file; above it there are several and an index.

    Raises FileExistsError.
    """
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    if there := sorted(p.name for p in folder.glob("*") if p.suffix in (".safetensors", ".json")):
        raise FileExistsError(f"{folder}: holds {', '.join(there)}: choose an empty folder")
    tensors = dict(_published(params, name, np.dtype(dtype)))
    shards: list[dict[str, np.ndarray]] = [{}]
    for key, tensor in tensors.items():
        if shards[-1] and sum(t.nbytes for t in shards[-1].values()) + tensor.nbytes > shard_bytes:
            shards.append({})
        shards[-1][key] = tensor
    # The published libraries refuse a file without this entry.
    metadata = {"format": "pt"}
    if len(shards) == 1:
        tensor_file.write(folder / f"{stem}.safetensors", tensors, metadata)
    else:
        weight_map = {}
        for i, shard in enumerate(shards, 1):
            file = f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors"
            tensor_file.write(folder / file, shard, metadata)
            weight_map |= dict.fromkeys(shard, file)
        total = sum(tensor.nbytes for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        text = json.dumps(index, indent=2)
        (folder / f"{stem}.safetensors.index.json").write_text(text, encoding="utf-8")
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _published(params: PyTree, name: Name, dtype: np.dtype) -> Iterator[tuple[str, np.ndarray]]:
    for path, leaf in traverse_util.flatten_dict(params, sep="/").items():
        stacked = not isinstance(name(path), str | Place)
        array = np.asarray(leaf)
        for row, place in zip(array if stacked else [array], all_places(name(path)), strict=True):
            tensor = from_ours(row, path).astype(dtype, order="C")
            yield place.name, place.axes(tensor)


def all_places(named: Named | Sequence[Named]) -> list[Place]:
    """The places that a `Name` returns, one or several."""
    if isinstance(named, Place):
        return [named]
    if isinstance(named, str):
        return [Place(named)]
    return [place for part in named for place in all_places(part)]


def listed(names: Sequence[str], most: int = 8) -> str:
    """The names, of many the first ones and the number of the others."""
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{', '.join(names[:most])}{rest}"


def to_ours(array: np.ndarray, shape: tuple[int, ...], path: str) -> np.ndarray:
    """A published tensor as the parameter of `shape` at `path`."""
    if path.endswith("/kernel"):
        array = array.transpose(*range(2, array.ndim), 1, 0)
    return array.reshape(shape)


def from_ours(array: np.ndarray, path: str) -> np.ndarray:
    """The parameter at `path` as it is published, but for the axes of `Place.axes`; a view of a
    contiguous array."""
    if not path.endswith("/kernel"):
        return array.reshape(published_shape(array.shape, path))
    outputs, inputs, *spatial = published_shape(array.shape, path)
    last = len(spatial)
    return array.reshape(*spatial, inputs, outputs).transpose(last + 1, last, *range(last))


def published_shape(shape: tuple[int, ...], path: str) -> tuple[int, ...]:
    """The published shape of the parameter at `path`, but for the axes of `Place.axes`.

    Heads and their features are one axis there: the inputs of a kernel that merges them, which is
    called out, and the outputs of any other. A kernel of four or five axes is a convolution's.
    """
    *_, module, leaf = ("", *path.split("/"))
    if leaf == "bias":
        return (int(np.prod(shape)),)
    if leaf != "kernel":
        return shape
    if len(shape) > 3:
        return (shape[-1], shape[-2], *shape[:-2])
    inputs = len(shape) - 1 if module == "out" else 1
    return int(np.prod(shape[inputs:])), int(np.prod(shape[:inputs]))
