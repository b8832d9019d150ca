"""The weights and the vocabulary of T5 v1.1's encoder (`t5.py`), from a folder as it is published:
config.json, model.safetensors (or its shards and their index) and spiece.model."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.typing import DTypeLike

from vdm_jax.models.text import token_attention as transformer
from vdm_jax.models.text.subwords import SentencePiece
from vdm_jax.models.text.t5 import T5Config, T5Encoder
from vdm_jax.weights import published

_TOKENIZER = "spiece.model"
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
}
_OUTSIDE = {
    "norm": "encoder.final_layer_norm.weight",
    "position_bias": "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
}


class Loaded(NamedTuple):
    """A network, its parameters as NumPy arrays, and its tokeniser."""

    network: T5Encoder
    params: dict[str, Any]
    tokenizer: SentencePiece


def _is_unused(name: str) -> bool:
    """Whether a published tensor belongs to the decoder, or is the one table of words again."""
    return name.startswith(("decoder.", "lm_head.", "shared.", "encoder.embed_tokens."))


def read_config(folder: str | Path) -> T5Config:
    """The sizes that a folder's config.json says. Raises FileNotFoundError; ValueError where it is
    no T5 of version 1.1."""
    path = Path(folder).expanduser() / "config.json"
    config = published.read_json(path)

    def value(name: str, allowed: Any = None) -> Any:
        return published.config_value(config, path, name, allowed)

    value("model_type", ["t5", "mt5"])
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
    )


def read_folder(folder: str | Path, dtype: DTypeLike = np.float32) -> Loaded:
    """The encoder in a folder, which may hold a decoder too; its parameters are kept, and it
    computes, in `dtype`.

    Raises FileNotFoundError; ValueError naming the file, and the tensor that is missing or of
    another shape than config.json says.
    """
    folder = Path(folder).expanduser()
    network = T5Encoder(read_config(folder), dtype)
    path = folder / _TOKENIZER
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    tokenizer = SentencePiece(path.read_bytes())
    if tokenizer.size > network.config.vocab_size:
        raise ValueError(
            f"{path}: has {tokenizer.size} pieces; config.json says vocab_size = "
            f"{network.config.vocab_size}"
        )
    tensors = published.Tensors(folder)

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
