"""Embeddings of captions by a frozen text encoder, computed once and stored beside the data.

    DATA_DIR/text_embeddings/ENCODER-IDENTITY/
        meta.json              which encoder, and the shape of what it gives
        KEYS.safetensors       keys uint8 (n, 16), ends int64 (n,), states float16 (tokens, width)

A caption's key is the beginning of its SHA-256, a shard's name a hash of its keys. Of n captions
all tokens lie one after the other; caption i's end before ends[i]. A shard is written whole or not
at all, so a folder may be read, and added to by several processes, while it is written.
"""

import functools
import hashlib
import json
import secrets
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import DTypeLike

from vdm_jax.data.source import DataError
from vdm_jax.models.text.words import TextEncoder

FOLDER, _META = "text_embeddings", "meta.json"
_FORMAT = 1
_KEY, _DTYPE = 16, np.float16  # bytes of a key; of the states
_CHUNK = 64  # captions encoded at once


def key(caption: str) -> bytes:
    """What a caption is found by."""
    return hashlib.sha256(caption.encode("utf-8")).digest()[:_KEY]


def share(captions: Iterable[str], part: int = 0, parts: int = 1) -> list[str]:
    """The distinct captions that process `part` of `parts` is to embed, whatever their order."""
    mine = {text for text in captions if int.from_bytes(key(text)[:8], "little") % parts == part}
    # Of similar lengths together: batches are as long as their longest caption.
    return sorted(mine, key=lambda text: (len(text), text))


def with_null(captions: Iterable[str], null_text: str | None) -> list[str]:
    """`captions`, and the text that stands for no text, if there is one."""
    return [*captions, *([] if null_text is None else [null_text])]


def folder_of(data_dir: str | Path, encoder: Any) -> Path:
    """Where embeddings by `encoder` (a `models.frozen_text.FrozenTextEncoder`) belong."""
    return Path(data_dir) / FOLDER / f"{encoder.name}-{encoder.identity[:16]}"


def write(
    folder: Path, encoder: Any, captions: Sequence[str], *, per_shard: int = 1024
) -> Iterator[int]:
    """Embeds captions into `folder`, and yields how many have been since the last time.

    Nothing is read of what is there: give it those that are `missing`. Raises what
    `encoder.encode` raises, and OSError.
    """
    if per_shard < 1:
        raise ValueError(f"per_shard = {per_shard}: must be positive")
    folder.mkdir(parents=True, exist_ok=True)
    _put(folder / _META, json.dumps(_description(encoder), indent=2).encode())
    for start in range(0, len(captions), per_shard):
        shard = captions[start : start + per_shard]
        states, counts = [], []
        for first in range(0, len(shard), _CHUNK):
            encoded = encoder.encode(shard[first : first + _CHUNK])
            mask = encoded["token_mask"]
            states.append(encoded["text_embeddings"][mask])
            counts.append(mask.sum(-1))
            if first + _CHUNK < len(shard):
                yield len(mask)
        keys = np.frombuffer(b"".join(map(key, shard)), np.uint8).reshape(-1, _KEY)
        tensors = {
            "keys": keys,
            "ends": np.cumsum(np.concatenate(counts), dtype=np.int64),
            "states": np.concatenate(states).astype(_DTYPE, copy=False),
        }
        name = hashlib.sha256(keys.tobytes()).hexdigest()[:24]
        _put(folder / f"{name}.safetensors", safetensors.numpy.save(tensors))
        yield len(mask)


def missing(folder: Path, captions: Iterable[str]) -> list[str]:
    """Those of `captions`, in order, that are not in `folder`. Raises DataError for a shard that
    is damaged."""
    held = {row.tobytes() for shard in _shards(folder) for row in _read(shard, "keys")}
    return [caption for caption in captions if key(caption) not in held]


def find(data_dir: str | Path, name: str, max_length: int, identity: str = "") -> dict[str, Any]:
    """The description of the embeddings by encoder `name` beside the data.

    With its "folder"; `identity` is the beginning of that of the weights, which only has to be
    given where there are several. Raises DataError.
    """
    found = []
    for path in sorted((Path(data_dir) / FOLDER).glob(f"{name}-*/{_META}")):
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{path}: not a JSON file that can be read ({error})") from error
        wanted = {"format": _FORMAT, "name": name, "max_length": max_length}
        if {field: meta.get(field) for field in wanted} == wanted:
            found.append(meta | {"folder": path.parent})
    fitting = [meta for meta in found if meta["identity"].startswith(identity)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise DataError(
            f"{Path(data_dir) / FOLDER}: embeddings by several weights of {name}; set "
            f"text.identity to one of {', '.join(meta['identity'][:16] for meta in fitting)}"
        )
    others = f"; there are {', '.join(m['identity'][:16] for m in found)}" if found else ""
    wanted = f" and text.identity = {identity[:16]!r}" if identity else ""
    raise DataError(
        f"{Path(data_dir) / FOLDER}: no embeddings of captions by text.encoder = {name!r} with "
        f"text.max_length = {max_length}{wanted}{others}. {_COMMAND}"
    )


_COMMAND = "Compute them: vdm data embed --config=... (the same configuration)"


class StoredText:
    """A `TextEncoder` that looks captions up among stored embeddings.

    It is sent to worker processes by the name of its folder; each maps the files into memory.

    Attributes:
      states: the type of the embeddings that it gives, whatever that of the files.
    """

    vocab_size = 0

    def __init__(
        self,
        folder: Path,
        max_length: int,
        embedding_width: int,
        null_text: str | None = None,
        states: DTypeLike = _DTYPE,
    ):
        self.folder = Path(folder)
        self.max_length, self.embedding_width = max_length, embedding_width
        self.null_text, self.states = null_text, np.dtype(states)

    def __reduce__(self) -> tuple[Any, ...]:
        width, states = self.embedding_width, self.states
        return StoredText, (self.folder, self.max_length, width, self.null_text, states)

    def example(self) -> dict[str, np.ndarray]:
        """See `TextEncoder`."""
        mask = np.zeros((1, self.max_length), bool)
        mask[:, 0] = True
        return {
            "text_embeddings": np.zeros((*mask.shape, self.embedding_width), self.states),
            "token_mask": mask,
        }

    def encode(self, captions: Sequence[str], *, strict: bool = False) -> dict[str, np.ndarray]:
        """See `TextEncoder`. Raises DataError for a caption that is not stored."""
        mask = np.zeros((len(captions), self.max_length), bool)
        embeddings = np.zeros((*mask.shape, self.embedding_width), self.states)
        for row, caption in enumerate(captions):
            states = self._find(caption)
            embeddings[row, : len(states)] = states
            mask[row, : len(states)] = True
        return {"text_embeddings": embeddings, "token_mask": mask}

    def check(self, captions: Collection[str]) -> None:
        """Raises DataError where some of `captions` are not stored."""
        lacking = missing(self.folder, dict.fromkeys(captions))
        if lacking:
            raise DataError(
                f"{self.folder}: lacks {len(lacking)} captions, such as {lacking[0]!r}. {_COMMAND}"
            )

    def _find(self, caption: str) -> np.ndarray:
        wanted = key(caption)
        keys, places = self._index
        first = np.searchsorted(keys, np.frombuffer(wanted[:8], np.uint64)[0])
        if first < len(keys) and keys[first].tobytes() == wanted[:8]:
            shard, row = places[first]
            opened, keys, ends = self._open[shard]
            if keys[row].tobytes() == wanted:
                begin = ends[row - 1] if row else 0
                return opened.get_slice("states")[begin : ends[row]]
        raise DataError(f"{self.folder}: lacks the caption {caption!r}. {_COMMAND}")

    @functools.cached_property
    def _open(self) -> list[tuple[Any, np.ndarray, np.ndarray]]:
        """Of each shard its file, and the keys and the ends of its captions."""
        shards = _shards(self.folder)
        opened = [safetensors.safe_open(path, framework="numpy") for path in shards]
        return [(file, file.get_tensor("keys"), file.get_tensor("ends")) for file in opened]

    @functools.cached_property
    def _index(self) -> tuple[np.ndarray, np.ndarray]:
        """The first 8 bytes of all keys, sorted, and the shard and row of each."""
        keys = [keys[:, :8].copy().view(np.uint64)[:, 0] for _, keys, _ in self._open]
        places = [
            np.stack([np.full(len(rows), number), np.arange(len(rows))], axis=-1)
            for number, rows in enumerate(keys)
        ]
        if not keys:
            return np.zeros(0, np.uint64), np.zeros((0, 2), int)
        order = np.argsort(np.concatenate(keys), kind="stable")
        return np.concatenate(keys)[order], np.concatenate(places)[order]


def stored(
    data_dir: str | Path, name: str, text_encoder: TextEncoder, identity: str, captions: Collection
) -> StoredText:
    """What stands for `text_encoder`, of that name, where `captions` are read. Raises DataError."""
    meta = find(data_dir, name, text_encoder.max_length, identity)
    if meta["embedding_width"] != text_encoder.embedding_width:
        raise DataError(
            f"{meta['folder']}: embeddings of width {meta['embedding_width']}, but text.encoder = "
            f"{name!r} has {text_encoder.embedding_width}"
        )
    null_text = text_encoder.null_text
    states = text_encoder.example()["text_embeddings"].dtype
    width = meta["embedding_width"]
    found = StoredText(meta["folder"], meta["max_length"], width, null_text, states)
    found.check(with_null(captions, null_text))
    return found


def _description(encoder: Any) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "name": encoder.name,
        "identity": encoder.identity,
        "max_length": encoder.max_length,
        "embedding_width": encoder.embedding_width,
    }


def _shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("*.safetensors") if path.name[0] != ".")


def _read(path: Path, name: str) -> np.ndarray:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return file.get_tensor(name)
    except (safetensors.SafetensorError, OSError) as error:
        raise DataError(
            f"{path}: damaged ({error}). Delete it; vdm data embed makes it anew"
        ) from error


def _put(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all."""
    written = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        written.write_bytes(content)
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)
