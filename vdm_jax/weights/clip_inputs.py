"""What turns captions and images into the inputs of CLIP's encoders, from folders as they are
published: the tokeniser, and `preprocessor_config.json`."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jax.typing import DTypeLike

from vdm_jax.models.clip import CLIP
from vdm_jax.models.text.clip import CLIPTextConfig, CLIPTextEncoder
from vdm_jax.models.text.subwords import BytePairs
from vdm_jax.models.vision.clip import CLIPVisionEncoder
from vdm_jax.models.vision.preprocessing import Preprocessing
from vdm_jax.weights import clip, published

_ENCODER, _TOKENIZER = "text_encoder", "tokenizer"  # the folders of a Stable Diffusion pipeline


class LoadedText(NamedTuple):
    """A text encoder, its parameters as NumPy arrays, and its tokeniser."""

    network: CLIPTextEncoder
    params: dict[str, Any]
    tokenizer: BytePairs


def read_text_config(folder: str | Path) -> CLIPTextConfig:
    """The sizes of the text encoder of `read_text`. Raises as `clip.read_config`."""
    network = clip.read_config(_places(folder)[0])
    if isinstance(network, CLIPVisionEncoder):
        raise ValueError(f"{folder}: is an image encoder without a text encoder")
    config = network.text if isinstance(network, CLIP) else network.config
    return dataclasses.replace(config, projection=0)


def read_text(folder: str | Path, dtype: DTypeLike = np.float32) -> LoadedText:
    """The text encoder of a folder, without its projection, and the tokeniser; it computes in
    `dtype`.

    The folder is that of a pipeline, with text_encoder/ and tokenizer/ in it, or that of a text
    encoder or of a whole CLIP, with the tokeniser's files in it or in tokenizer/ beside it. Raises
    FileNotFoundError; ValueError naming the file and what is wrong with it.
    """
    encoder, place = _places(folder)
    config, tokenizer = read_text_config(folder), read_tokenizer(place)
    if tokenizer.size > config.vocab_size:
        raise ValueError(
            f"{place}: has {tokenizer.size} pieces; config.json says vocab_size = "
            f"{config.vocab_size}"
        )
    network, params = clip.read_folder(encoder, dtype)
    params = dict(params["text"] if isinstance(network, CLIP) else params)
    params.pop("projection", None)
    return LoadedText(CLIPTextEncoder(config, dtype), params, tokenizer)


def _places(folder: str | Path) -> tuple[Path, Path]:
    """The folders of the encoder and of the tokeniser."""
    folder = Path(folder).expanduser()
    encoder = folder / _ENCODER if (folder / _ENCODER).is_dir() else folder
    around = (encoder, encoder / _TOKENIZER, encoder.parent / _TOKENIZER)
    has_files = (
        p for p in around if any((p / n).is_file() for n in ("vocab.json", "tokenizer.json"))
    )
    return encoder, next(has_files, encoder)


def read_tokenizer(folder: str | Path) -> BytePairs:
    """CLIP's tokeniser from vocab.json and merges.txt, or else from tokenizer.json.

    What it pads with is the pad_token of special_tokens_map.json or tokenizer_config.json. Raises
    FileNotFoundError; ValueError naming the file and what is wrong with it.
    """
    folder = Path(folder).expanduser()
    if (folder / "vocab.json").is_file():
        path = folder / "merges.txt"
        vocabulary = published.read_json(folder / "vocab.json")
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such file")
        rows = path.read_text(encoding="utf-8").split("\n")
        merges = [row.split(" ") for row in rows if row and not row.startswith("#version")]
    elif (folder / "tokenizer.json").is_file():
        path = folder / "tokenizer.json"
        vocabulary, merges = _model(published.read_json(path), path)
    else:
        raise FileNotFoundError(f"{folder}: neither vocab.json nor tokenizer.json is there")
    if wrong := next((pair for pair in merges if len(pair) != 2), None):
        raise ValueError(f"{path}: {' '.join(wrong)!r} is not a pair of pieces")
    try:
        return BytePairs(vocabulary, [tuple(pair) for pair in merges], _padding(folder))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _model(content: dict[str, Any], path: Path) -> tuple[dict[str, int], list[list[str]]]:
    """Vocabulary and merges of a tokenizer.json."""
    model = published.config_value(content, path, "model")
    if model.get("type", "BPE") != "BPE" or model.get("end_of_word_suffix") != "</w>":
        raise ValueError(f"{path}: model is not CLIP's, byte pairs with the ending </w>")
    known = {*model["vocab"], BytePairs.START, BytePairs.END}
    for added in content.get("added_tokens", ()):
        if added["content"] not in known:
            raise ValueError(f"{path}: the added token {added['content']!r} is not understood")
    merges = [pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"]]
    return model["vocab"], merges


def _padding(folder: Path) -> str:
    """The older file has the last word, unless the newer one lists the added tokens itself."""
    names = ["tokenizer_config.json", "special_tokens_map.json"]
    found = {n: published.read_json(folder / n) for n in names if (folder / n).is_file()}
    if "added_tokens_decoder" in found.get(names[0], {}):
        found.pop(names[1], None)
    padding: Any = BytePairs.END
    for content in found.values():
        padding = content.get("pad_token") or padding
    return padding["content"] if isinstance(padding, dict) else padding


# Of the library, and without influence on the values.
_IGNORED = {
    *("_processor_class", "processor_class", "do_convert_rgb", "data_format", "input_data_format"),
    *("feature_extractor_type", "image_processor_type", "_valid_processor_keys", "return_tensors"),
    *("device", "disable_grouping", "image_seq_length", "pad_size"),
}
_FIXED = {
    "do_resize": True,
    "do_center_crop": True,
    "do_normalize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "resample": 3,  # bicubic
    "default_to_square": False,
    "do_pad": None,
}


def read_preprocessing(folder: str | Path) -> Preprocessing:
    """The preprocessing that a folder's preprocessor_config.json describes.

    Raises FileNotFoundError; ValueError naming a value that is not understood.
    """
    path = Path(folder).expanduser() / "preprocessor_config.json"
    config = published.read_json(path)
    for key, value in config.items():
        if key in _FIXED and value not in (_FIXED[key], None):
            raise ValueError(f"{path}: {key} = {value!r}: allowed is {_FIXED[key]!r}")
        if key not in {"size", "crop_size", "image_mean", "image_std"} | _IGNORED | _FIXED.keys():
            raise ValueError(f"{path}: {key} = {value!r} is not understood")
    size = config.get("size", 224)
    shorter = size if isinstance(size, int) else size.get("shortest_edge")
    if not isinstance(shorter, int):
        raise ValueError(f"{path}: size = {size!r}: allowed is shortest_edge alone, or a number")
    crop = config.get("crop_size", shorter)
    if isinstance(crop, int):
        crop = {"height": crop, "width": crop}
    standard = Preprocessing()
    try:
        return Preprocessing(
            shorter=shorter,
            crop=(crop["height"], crop["width"]),
            mean=tuple(config.get("image_mean", standard.mean)),
            deviation=tuple(config.get("image_std", standard.deviation)),
        )
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
