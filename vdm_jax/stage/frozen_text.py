"""Frozen text encoders: captions to the states of a language model that others trained.

A `FrozenTextEncoder` is a `TextEncoder` (`text.py`) that gives embeddings in the place of token
numbers: MiniLM, T5 v1.1's encoder as in Imagen (Saharia et al. 2022, section 2.1), umT5's as in Wan
(Wan Team 2025, section 4.2), or CLIP's as in Stable Diffusion (Rombach et al. 2022, section 3.3).
Networks and shapes are known at once; weights are read when the first caption is encoded, so a
model can be built, described, compiled and trained on stored embeddings where there are none.
"""

import dataclasses
import functools
import hashlib
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import SingleDeviceSharding
from jaxtyping import PyTree

from vdm_jax.models.text import clip, t5
from vdm_jax.models.text import token_attention as transformer
from vdm_jax.models.text.minilm import MiniLM
from vdm_jax.models.text.subwords import batches, plain
from vdm_jax.parallel import host_memory
from vdm_jax.weights import clip as clip_weights
from vdm_jax.weights import clip_inputs, fetch
from vdm_jax.weights import minilm as minilm_weights
from vdm_jax.weights import t5 as t5_weights

DTYPE = np.float16
"""Of embeddings, in memory and on disk: what is stored is what is sampled with."""
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
Loras = Sequence[tuple[str, float]]
"""LoRA files and their scales."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Family:
    """Encoders whose weights lie in a folder of the user's.

    Attributes:
      variable: the environment variable that overrides `text.weights`.
      files: what the folder holds, for errors.
      sizes: the configurations of the published ones, by name.
      make: a network of a configuration and a dtype.
      read_config, read_folder: of a folder.
      null_text: see `TextEncoder`.
      states: the type of the embeddings.
      adapt: the parameters of a network, changed by LoRA files with their scales; None = such an
        encoder takes none.
      clean: changes captions before they are tokenised; None = they stay as they are.
    """

    variable: str
    files: str
    sizes: Mapping[str, Any]
    make: Callable[[Any, Any], nn.Module]
    read_config: Callable[[str], Any]
    read_folder: Callable[[str, Any], Any]
    null_text: str | None = None
    states: Any = DTYPE
    adapt: Callable[[Any, PyTree, Loras], PyTree] | None = None
    clean: Callable[[str], str] | None = None


_FAMILIES = {
    "t5": _Family(
        variable="VDM_JAX_T5",
        files="config.json, model.safetensors (or shards and index) and spiece.model",
        sizes=t5.SIZES,
        make=t5.T5Encoder,
        read_config=t5_weights.read_config,
        read_folder=t5_weights.read_folder,
    ),
    "umt5": _Family(
        variable="VDM_JAX_UMT5",
        files="text_encoder/ and tokenizer/, or config.json, model.safetensors (or shards and "
        "index) and spiece.model or tokenizer.json",
        sizes=t5.UMT5_SIZES,
        make=t5.T5Encoder,
        read_config=t5_weights.read_config,
        read_folder=t5_weights.read_folder,
        null_text="",
        states=np.float32,  # as published pipelines sample
        clean=plain,
    ),
    "clip": _Family(
        variable="VDM_JAX_CLIP",
        files="text_encoder/ and tokenizer/, or config.json, model.safetensors, vocab.json and "
        "merges.txt",
        sizes=clip.SIZES,
        make=clip.CLIPTextEncoder,
        read_config=clip_inputs.read_text_config,
        read_folder=clip_inputs.read_text,
        null_text="",
        states=np.float32,  # as published pipelines sample
        adapt=clip_weights.with_loras,
    ),
}
# A family's own name is of the size that the folder has.
_SIZED = {
    f"{name}_{size}": (family, size) for name, family in _FAMILIES.items() for size in family.sizes
}
ENCODERS = ("minilm", *_FAMILIES, *_SIZED)
_MADE: weakref.WeakValueDictionary[tuple, "FrozenTextEncoder"] = weakref.WeakValueDictionary()


def make_frozen_text_encoder(
    text: Mapping[str, Any], *, own: bool = False, offload: bool = False
) -> "FrozenTextEncoder":
    """The encoder that a configuration's section `text` names.

    own: one of the caller's own, who may `place` it; else stages of equal `text` share one.
    offload: keep the weights in the host's memory (`parallel.host_memory`).

    `encoder`: minilm; t5_small, t5_base, t5_large, t5_xl, t5_xxl; umt5_xxl, Wan's; clip_l, clip_h,
    Stable Diffusion 1's and 2's; or t5, umt5 or clip, which are of the size that the folder's
    config.json says. `max_length`: of tokens; CLIP fills all of them, and Stable Diffusion has 77,
    Wan 512. Optional fields: `weights`, a folder of published files (`weights/t5.py`,
    `clip_inputs.py`, `minilm.py`), which all but MiniLM need to encode anything; the environment
    variable VDM_JAX_T5, VDM_JAX_UMT5 or VDM_JAX_CLIP overrides it, for a model that was trained
    elsewhere. `dtype`, in which they are kept and compute, float32 or bfloat16. `loras`, pairs of a
    LoRA file and its scale, whose entries for the text encoder are added to CLIP's weights.
    `null_text`, see `TextEncoder`, by default the empty text for CLIP and Wan's, and none for the
    others. `identity`, see `FrozenTextEncoder`. Raises ValueError, FileNotFoundError.
    """
    name, weights = text["encoder"], text.get("weights", "")
    if name not in ENCODERS:
        raise ValueError(f"text.encoder = {name!r}: allowed are {', '.join(ENCODERS)}")
    family, size = _SIZED.get(name, (_FAMILIES.get(name), None))
    if family is not None:
        weights = os.environ.get(family.variable) or weights
    dtype = text.get("dtype") or "float32"
    if dtype not in DTYPES:
        raise ValueError(f"text.dtype = {dtype!r}: allowed are {', '.join(DTYPES)}")
    loras = tuple((str(file), float(scale)) for file, scale in text.get("loras", ()))
    if loras and (family is None or family.adapt is None):
        raise ValueError(f"text.encoder = {name!r}: takes no LoRA files (text.loras = {loras})")
    null_text = text.get("null_text", None if family is None else family.null_text)
    # The stages of a cascade share one encoder, as long as any of them lives.
    length, identity = text["max_length"], text.get("identity", "")
    shared = (name, str(weights), length, dtype, identity, loras, null_text, offload)
    if shared in _MADE and not own:
        return _MADE[shared]
    load: Callable[[], Any]
    if family is None:
        is_folder = weights and Path(weights).expanduser().is_dir()
        network: nn.Module = minilm_weights.read_config(weights) if is_folder else MiniLM()
        width, load = network.width, functools.partial(minilm_weights.load_weights, weights)
    else:
        if size is None and not weights:
            raise ValueError(
                f"text.encoder = {name!r}: text.weights or {family.variable} must name the folder "
                "of its files"
            )
        config = family.read_config(weights) if size is None else family.sizes[size]
        network = family.make(config, DTYPES[dtype])
        load = functools.partial(_load, name, family, weights, DTYPES[dtype], loras)
        width = network.width
    encoder = FrozenTextEncoder(
        name,
        network=network,
        embedding_width=width,
        max_length=length,
        load=load,
        null_text=null_text,
        states=DTYPE if family is None else family.states,
        clean=None if family is None else family.clean,
        expected=identity,
        offload=offload,
    )
    if not own:
        _MADE[shared] = encoder
    return encoder


def _load(name: str, family: _Family, weights: str, dtype: Any, loras: Loras) -> Any:
    if not weights:
        raise ValueError(
            f"text.encoder = {name!r}: text.weights, or the environment variable "
            f"{family.variable}, must name the folder of its files: {family.files}"
        )
    network, params, tokenizer = family.read_folder(weights, dtype)
    if family.adapt is not None and loras:
        params = family.adapt(network, params, loras)
    return network, params, tokenizer


class _Ready(NamedTuple):
    params: PyTree
    tokenizer: Any
    identity: str


class FrozenTextEncoder:
    """See `TextEncoder`: `encode` gives `text_embeddings` float16, or float32 of CLIP and umT5,
    (n, max_length, embedding_width), zero outside of `token_mask`.

    Attributes:
      name: of `ENCODERS`.
      max_length: tokens of a caption, with those that the encoder adds; longer ones are cut.
      embedding_width: of a token's embedding.
      null_text: see `TextEncoder`.
      identity: a hash of weights, tokeniser and max_length. Reading it reads the weights. Other
        weights than those of `expected`, the beginning of an identity, are refused.
    """

    vocab_size = 0

    def __init__(
        self,
        name: str,
        *,
        network: nn.Module,
        embedding_width: int,
        max_length: int,
        load: Callable[[], Any],
        null_text: str | None = None,
        states: Any = DTYPE,
        clean: Callable[[str], str] | None = None,
        expected: str = "",
        batch_size: int = 32,
        offload: bool = False,
    ):
        """load: gives network, parameters and tokeniser; the network must equal `network`. states:
        the type of the embeddings. clean: changes captions before they are tokenised. offload: keep
        the parameters in the host's memory."""
        if max_length < 3:
            raise ValueError(f"text.max_length = {max_length}: {name} needs at least 3")
        longest = getattr(network, "max_positions", max_length)
        if max_length > longest:
            raise ValueError(f"text.max_length = {max_length}: {name} takes at most {longest}")
        self.name, self.network = name, network
        self.max_length, self.embedding_width = max_length, embedding_width
        self.null_text, self.batch_size, self.expected = null_text, batch_size, expected
        self._load, self._states, self._clean = load, np.dtype(states), clean
        self._plan: Any = None
        self._offload = offload

    @property
    def identity(self) -> str:
        return self._ready.identity

    def abstract_params(self) -> PyTree:
        """As `Stage.abstract_params`: what a plan on a mesh is made of."""
        return transformer.abstract_params(self.network)

    def place(self, plan: Any) -> None:
        """Lays the encoder out by a `parallel.sharding.Plan` of it. To be called before its use."""
        if "_ready" in self.__dict__:
            raise ValueError(f"{self.name}: its weights lie somewhere already")
        if self.batch_size % plan.batch_shards:
            self.batch_size += plan.batch_shards - self.batch_size % plan.batch_shards
        self._plan = plan

    def example(self) -> dict[str, np.ndarray]:
        """See `TextEncoder`. No weights are read."""
        mask = np.zeros((1, self.max_length), bool)
        mask[:, 0] = True
        embeddings = np.zeros((1, self.max_length, self.embedding_width), self._states)
        return {"text_embeddings": embeddings, "token_mask": mask}

    def encode(self, captions: Sequence[str], *, strict: bool = False) -> dict[str, np.ndarray]:
        """See `TextEncoder`. Without `strict` captions that are too long are cut; with it they
        raise ValueError. Raises what reading the weights does, and FloatingPointError where an
        embedding is not a finite number of the embeddings' type."""
        captions = [self._clean(one) if self._clean else one for one in captions]
        ready = self._ready
        tokens, mask = ready.tokenizer.encode(captions, self.max_length, strict=strict)
        shape = (len(captions), self.max_length, self.embedding_width)
        embeddings = np.zeros(shape, self._states)
        for rows, cut in batches(mask, self.batch_size):
            batch = cut(tokens, mask)
            if self._plan is not None:
                batch = jax.device_put(batch, self._plan.batch)
            hidden, finite = self._apply(ready.params, *map(jnp.asarray, batch))
            if not finite:
                raise FloatingPointError(
                    f"text.encoder = {self.name!r}: embeddings that are not finite in "
                    f"{self._states}, of captions such as {captions[rows[0]]!r}"
                )
            embeddings[rows, : hidden.shape[1]] = np.asarray(hidden)[: len(rows)]
        return {"text_embeddings": embeddings, "token_mask": mask}

    def cut(self, captions: Sequence[str]) -> int:
        """How many of the captions are longer than `max_length` tokens. Raises as `encode`."""
        tokenizer, length = self._ready.tokenizer, self.max_length
        tokens, _ = tokenizer.encode(captions, length)
        more, _ = tokenizer.encode(captions, length + 1)
        # The last token of a caption that is cut is not what it would be with more room.
        return int((tokens != more[:, :length]).any(1).sum())

    @functools.cached_property
    def _apply(self) -> Callable[..., Any]:
        stored = {self.name: self._ready.params}

        def apply(params, tokens, mask):
            params = host_memory.on_device({self.name: params}, stored)[self.name]
            hidden = self.network.apply({"params": params}, tokens, mask)
            hidden = jnp.where(mask[..., None], hidden, 0).astype(self._states)
            return hidden, jnp.isfinite(hidden).all()

        return jax.jit(apply)

    @functools.cached_property
    def _ready(self) -> _Ready:
        network, params, tokenizer = self._load()
        if network != self.network:
            raise ValueError(
                f"text.encoder = {self.name!r}: text.weights has another network: {network}"
            )
        parts = f"{fetch.weights_hash(params)} {tokenizer.hash} {self.max_length}"
        identity = hashlib.sha256(parts.encode()).hexdigest()
        if not identity.startswith(self.expected):
            raise ValueError(
                f"text.identity = {self.expected!r}: text.encoder = {self.name!r} with the weights "
                f"that are here is {identity}; the model was trained with another one"
            )
        places: Any = SingleDeviceSharding(jax.local_devices()[0])
        if self._plan is not None:
            places = self._plan.params
        if self._offload:
            places = host_memory.places(places)
        return _Ready(jax.device_put(params, places), tokenizer, identity)
