"""The weights and the vocabulary of the encoders of T5 v1.1 and umT5 (`models/text/t5.py`), from a
folder as it is published: config.json, model.safetensors (or its shards and their index), and
spiece.model or tokenizer.json. In a pipeline's folder they lie in text_encoder/ and tokenizer/."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.typing import DTypeLike

from vdm_jax.models.text import token_attention as transformer
from vdm_jax.models.text.subwords import SentencePiece, Unigram
from vdm_jax.models.text.t5 import T5Config, T5Encoder
from vdm_jax.weights import published

_TOKENIZERS = {"spiece.model": SentencePiece.read, "tokenizer.json": Unigram.read}
_TEXT_ENCODER, _TOKENIZER = "text_encoder", "tokenizer"
_IN_LAYER = {
    "query": "layer.0.SelfAttention.q",
    "key": "layer.0.SelfAttention.k",
    "value": "layer.0.SelfAttention.v",
    "out": "layer.0.SelfAttention.o",
    "attention_norm": "layer.0.layer_norm",
    "mlp_gate": "layer.1.DenseReluDense.wi_0",
    "mlp_in": "layer.1.DenseReluDense.wi_1",
    "mlp_out": "layer.1.DenseReluDense.wo",
    "mlp_norm": "layer.1.layer_norm",
    "position_bias": "layer.0.SelfAttention.relative_attention_bias",
}
_OUTSIDE = {
    "norm": "encoder.final_layer_norm.weight",
    "position_bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
}


class Loaded(NamedTuple):
    """A network, its parameters as NumPy arrays, and its tokeniser."""

    network: T5Encoder
    params: dict[str, Any]
    tokenizer: SentencePiece | Unigram


def _is_unused(name: str) -> bool:
    """Whether a published tensor belongs to the decoder, or is the one table of words again."""
    return name.startswith(("decoder.", "lm_head.", "shared.", "encoder.embed_tokens."))


def read_config(folder: str | Path) -> T5Config:
    """The sizes that a folder's config.json says. Raises FileNotFoundError; ValueError where it is
    no T5 of version 1.1 and no umT5."""
    path = _part(folder, _TEXT_ENCODER) / "config.json"
    config = published.read_json(path)

    def value(name: str, allowed: Any = None) -> Any:
        return published.config_value(config, path, name, allowed)

    kind = value("model_type", ["t5", "mt5", "umt5"])
    # Version 1.0 says nothing, or relu.
    value("feed_forward_proj", ["gated-gelu"])
    return T5Config(
        width=value("d_model"),
        hidden=value("d_ff"),
        num_layers=value("num_layers"),
        heads=value("num_heads"),
        head_dim=value("d_kv"),
        vocab_size=value("vocab_size"),
        buckets=value("relative_attention_num_buckets"),
        max_distance=config.get("relative_attention_max_distance", 128),
        epsilon=config.get("layer_norm_epsilon", 1e-6),
        bias_in_layers=kind == "umt5",
    )


def _part(folder: str | Path, name: str) -> Path:
    """The folder of a part; of a pipeline's folder the one inside of it."""
    folder = Path(folder).expanduser()
    return folder / name if (folder / name).is_dir() else folder


def _read_tokenizer(folder: Path, vocab_size: int) -> SentencePiece | Unigram:
    """The tokeniser in a folder. Raises FileNotFoundError, ValueError."""
    for file, read in _TOKENIZERS.items():
        path = folder / file
        if not path.is_file():
            continue
        tokenizer = read(path)
        if tokenizer.size > vocab_size:
            raise ValueError(
                f"{path}: has {tokenizer.size} pieces; config.json says vocab_size = {vocab_size}"
            )
        return tokenizer
    raise FileNotFoundError(f"{folder}: none of {', '.join(_TOKENIZERS)} is there")


def read_folder(folder: str | Path, dtype: DTypeLike = np.float32) -> Loaded:
    """The encoder in a folder, which may hold a decoder too; its parameters are kept, and it
    computes, in `dtype`.

    Raises FileNotFoundError; ValueError naming the file, and the tensor that is missing or of
    another shape than config.json says.
    """
    network = T5Encoder(read_config(folder), dtype)
    tokenizer = _read_tokenizer(_part(folder, _TOKENIZER), network.config.vocab_size)
    tensors = published.Tensors(_part(folder, _TEXT_ENCODER))

    def name(path: str) -> str | list[str]:
        module = path.split("/")[-2]
        if path.startswith("layers/"):
            blocks = range(network.config.num_layers)
            return [f"encoder.block.{i}.{_IN_LAYER[module]}.weight" for i in blocks]
        if module == "words":
            # One table under two names; a file may hold either.
            names = ("shared.weight", "encoder.embed_tokens.weight")
            return names[0] if names[0] in tensors else names[1]
        return _OUTSIDE[module]

    params = published.read_params(
        tensors, transformer.shapes(network), name, dtype, unused=_is_unused
    )
    return Loaded(network, params, tokenizer)
