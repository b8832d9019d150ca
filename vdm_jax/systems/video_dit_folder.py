"""Folders of published pipelines of Wan's kind, in and out: the transformer, the autoencoder, the
text encoder and the sampler of `video_dit.py`."""

import hashlib
from pathlib import Path

import jax.numpy as jnp
from jaxtyping import PyTree
from ml_collections import ConfigDict

from vdm_jax.systems import video_dit
from vdm_jax.systems.pipeline_folder import (
    OURS,
    copy_parts,
    own_sections,
    part_folder,
    take_own_sections,
    write_json,
)
from vdm_jax.weights import flow_scheduler, published, scheduler, video_transformer

NAME = video_dit.NAME
_PARTS = ("transformer", "vae", "text_encoder", "tokenizer", "scheduler")
# Settings of the published pipeline with the only values that are computed here: Wan 2.2 has two
# transformers, or a time for each token.
_FIXED = {
    "transformer_2": [None, None],
    "boundary_ratio": None,
    "expand_timesteps": False,
}


def read_published(folder: Path) -> ConfigDict:
    """The configuration of a published pipeline, a folder of model_index.json, transformer/, vae/,
    text_encoder/, tokenizer/ and scheduler/. A pipeline that `write_published` wrote for another
    text encoder has no folders of it.

    Raises FileNotFoundError; ValueError naming a part or a value that is not understood.
    """
    path = folder / published.PIPELINE
    index = published.read_json(path)
    known = {*_PARTS, *_FIXED}
    if unknown := sorted(n for n in index if n not in known and not n.startswith("_")):
        raise ValueError(f"{path}: {', '.join(unknown)}: not understood")
    for name, only in _FIXED.items():
        if index.get(name, only) != only:
            raise ValueError(
                f"{path}: {name} = {index[name]!r}: allowed is {only!r}, as in Wan 2.1"
            )
    for part in _PARTS if OURS not in index else ("transformer", "vae", "scheduler"):
        if not (folder / part).is_dir():
            raise FileNotFoundError(f"{folder / part}: no such folder; the pipeline needs it")
    video_transformer.read_config(folder / "transformer")  # errors name the file
    flow = flow_scheduler.read_folder(folder / "scheduler")
    config = video_dit.default_config()
    with config.unlocked():
        for name, file in (("transformer", "config.json"), ("scheduler", scheduler.FILE)):
            config.model[name] = ConfigDict(published.read_json(folder / name / file))
    config.model.autoencoder, config.model.dtype = str(folder / "vae"), "float32"
    config.text.encoder, config.text.weights = "umt5", str(folder)
    config.sample.sampler = flow.kind
    take_own_sections(config, index)
    return config


def read_published_params(folder: Path) -> PyTree:
    """The parameters of a published pipeline's transformer. Raises ValueError,
    FileNotFoundError."""
    return video_transformer.read_folder(folder / "transformer").params


def published_digest(folder: Path) -> str:
    """What names the transformer and the sampler. Raises ValueError, FileNotFoundError."""
    digests = published.Tensors(folder / "transformer", published.DIFFUSERS).digests
    text = (folder / "scheduler" / scheduler.FILE).read_text(encoding="utf-8")
    return hashlib.sha256(f"{digests.name} {text}".encode()).hexdigest()


def write_published(folder: Path, config: ConfigDict, params: PyTree, dtype: str) -> list[str]:
    """Writes a published pipeline, and returns the names of its parts.

    The autoencoder and the text encoder are copied from where the model reads them. With a text
    encoder that the published pipeline does not have, model_index.json names it and the settings of
    sampling for this library; the published one loads the parts. dtype: of the transformer's
    tensors. Raises FileExistsError, ValueError.
    """
    network = video_transformer.from_config(config.model.transformer.to_dict(), video_dit.HERE)
    video_transformer.write_folder(folder / "transformer", network, params, jnp.dtype(dtype))
    write_json(folder / "scheduler" / scheduler.FILE, config.model.scheduler.to_dict())
    copied = {"vae": part_folder(config.model.autoencoder)}
    weights = Path(config.text.weights).expanduser()
    text_parts = ("text_encoder", "tokenizer")
    if config.text.weights and (weights / "text_encoder").is_dir():
        copied |= {part: weights / part for part in text_parts}
    copy_parts(folder, copied)
    index = {**_INDEX, "scheduler": ["diffusers", config.model.scheduler["_class_name"]]}
    if "tokenizer" not in copied:
        index |= dict.fromkeys(text_parts, [None, None])
        index[OURS] = own_sections(config) | {"model": {"masks": list(config.model.masks)}}
    elif (weights / published.PIPELINE).is_file():  # it names their classes
        theirs = published.read_json(weights / published.PIPELINE)
        index |= {part: theirs[part] for part in text_parts if part in theirs}
    write_json(folder / published.PIPELINE, index)
    return ["transformer", "scheduler", *copied]


_INDEX = {
    "_class_name": "WanPipeline",
    "text_encoder": ["transformers", "UMT5EncoderModel"],
    "tokenizer": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "WanTransformer3DModel"],
    "vae": ["diffusers", "AutoencoderKLWan"],
}
