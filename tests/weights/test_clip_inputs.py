"""CLIP's tokeniser and preprocessing equal transformers', on recorded texts and images.

The golden files are recorded by `record_clip.py`.
"""

import json
import pickle

import numpy as np
import pytest

from tests.weights import golden_files
from vdm_jax.models.text.subwords import BytePairs
from vdm_jax.models.vision.preprocessing import Preprocessing
from vdm_jax.weights import clip_inputs

TOKENS = json.loads((golden_files.FOLDER / "clip_tokens.json").read_text(encoding="utf-8"))
END, START = 49_407, 49_406


def write_tokenizer(folder, padding=None):
    """vocab.json and merges.txt, and where it is not the standard one what it pads with."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(TOKENS["vocabulary"]))
    rows = ["#version: 0.2", *TOKENS["merges"], ""]
    (folder / "merges.txt").write_text("\n".join(rows), encoding="utf-8")
    if padding is not None:
        (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": padding}))
    return folder


def write_text_folder(folder):
    """A whole text encoder of random weights, and a tokeniser of letters: 58 pieces."""
    golden_files.write_folder(folder, golden_files.read("clip_text_projection"))
    letters = "abcdefghijklmnopqrstuvwxyz.!"
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), BytePairs.START, BytePairs.END]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


@pytest.mark.parametrize("version,padding", [("1", None), ("2", "!")])
def test_tokens_equal_those_of_the_original(tmp_path, version, padding):
    tokenizer = clip_inputs.read_tokenizer(write_tokenizer(tmp_path, padding))
    assert tokenizer.size == 49_408 and len(TOKENS["texts"]) > 300
    tokens, mask = tokenizer.encode(TOKENS["texts"], 77)
    assert tokens.dtype == np.int32 and mask.all() and mask.shape == tokens.shape
    for text, row, expected in zip(
        TOKENS["texts"], tokens.tolist(), TOKENS["tokens"][version], strict=True
    ):
        assert row == expected + [expected[-1]] * (77 - len(expected)), text


def test_texts_are_cut_before_the_end(tmp_path):
    tokenizer = clip_inputs.read_tokenizer(write_tokenizer(tmp_path))
    tokens, _ = tokenizer.encode(["a photo of a cat"], 77)
    length = int((tokens[0] == END).argmax()) + 1
    cut, mask = tokenizer.encode(["a photo of a cat"], length - 1)
    assert cut[0].tolist() == [*tokens[0, : length - 2], END] and mask.all()
    assert tokens[0, 0] == START
    with pytest.raises(ValueError, match=rf"'a photo of a cat': {length} tokens; at most"):
        tokenizer.encode(["a photo of a cat"], length - 1, strict=True)
    sent = pickle.loads(pickle.dumps(tokenizer))
    assert sent.hash == tokenizer.hash
    np.testing.assert_array_equal(sent.encode(["a photo of a cat"], 77)[0], tokens)


def test_the_files_of_a_tokeniser(tmp_path):
    plain = clip_inputs.read_tokenizer(write_tokenizer(tmp_path / "plain"))
    padded = clip_inputs.read_tokenizer(write_tokenizer(tmp_path / "padded", {"content": "!"}))
    assert padded.encode(["a cat"], 77)[0][0, -1] == 0 and plain.hash != padded.hash
    # The newer configuration, which lists the added tokens, stands above the map.
    config = {"pad_token": "<|endoftext|>", "added_tokens_decoder": {}}
    (tmp_path / "padded" / "tokenizer_config.json").write_text(json.dumps(config))
    assert clip_inputs.read_tokenizer(tmp_path / "padded").hash == plain.hash

    one = tmp_path / "one"
    one.mkdir()
    model = {"type": "BPE", "end_of_word_suffix": "</w>", "vocab": TOKENS["vocabulary"]}
    added = [{"id": END, "content": "<|endoftext|>"}]
    for merges in (TOKENS["merges"], [merge.split(" ") for merge in TOKENS["merges"]]):
        content = {"model": {**model, "merges": merges}, "added_tokens": added}
        (one / "tokenizer.json").write_text(json.dumps(content))
        assert clip_inputs.read_tokenizer(one).hash == plain.hash
    added = [{"id": END + 1, "content": "<my-cat>"}]
    (one / "tokenizer.json").write_text(json.dumps({**content, "added_tokens": added}))
    with pytest.raises(ValueError, match="the added token '<my-cat>' is not understood"):
        clip_inputs.read_tokenizer(one)
    (one / "tokenizer.json").write_text(json.dumps({"model": {"type": "WordPiece"}}))
    with pytest.raises(ValueError, match="model is not CLIP's"):
        clip_inputs.read_tokenizer(one)


def test_wrong_files_of_a_tokeniser_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither vocab\.json nor tokenizer\.json"):
        clip_inputs.read_tokenizer(tmp_path)
    folder = write_tokenizer(tmp_path / "wrong")
    (folder / "merges.txt").write_text("a b c\n")
    with pytest.raises(ValueError, match=r"merges\.txt: 'a b c' is not a pair"):
        clip_inputs.read_tokenizer(folder)
    (folder / "merges.txt").write_text("a unheard\n")
    with pytest.raises(ValueError, match=r"merges\.txt: vocabulary and merges do not fit"):
        clip_inputs.read_tokenizer(folder)
    (folder / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"merges\.txt: no such file"):
        clip_inputs.read_tokenizer(folder)
    with pytest.raises(ValueError, match=r"lacks <\|startoftext\|>"):
        BytePairs({"a": 0}, [])


@pytest.mark.parametrize("name", ["wide", "tall", "small"])
def test_images_are_made_as_by_the_original(tmp_path, name):
    config, _, values = golden_files.read("clip_preprocessing")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    preprocessing = clip_inputs.read_preprocessing(tmp_path)
    found = preprocessing(np.repeat(values[f"{name}/image"][None], 2, axis=0))
    assert found.shape == (2, 24, 24, 3) and found.dtype == np.float32
    # One grey level is 0.015.
    np.testing.assert_allclose(found[1], values[f"{name}/values"], atol=1e-6, rtol=0)


def test_preprocessing_is_read_strictly(tmp_path):
    path = tmp_path / "preprocessor_config.json"
    old = {
        "crop_size": 224,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 224,
    }
    path.write_text(json.dumps(old))
    assert clip_inputs.read_preprocessing(tmp_path) == Preprocessing()
    for change, message in (
        ({"resample": 2}, "resample = 2: allowed is 3"),
        ({"do_center_crop": False}, "do_center_crop = False: allowed is True"),
        ({"size": {"height": 224, "width": 224}}, "size = .*: allowed is shortest_edge alone"),
        ({"crop_size": 336}, r"crop = \(336, 336\): must be at most shorter = 224"),
        ({"do_flip": True}, "do_flip = True is not understood"),
    ):
        path.write_text(json.dumps(old | change))
        with pytest.raises(ValueError, match=message):
            clip_inputs.read_preprocessing(tmp_path)


def test_the_folders_of_a_text_encoder(tmp_path):
    golden = golden_files.read("clip_text")
    pipeline = tmp_path / "pipeline"
    pipeline.mkdir()
    encoder = golden_files.write_folder(pipeline / "text_encoder", golden)
    write_tokenizer(pipeline / "tokenizer")
    with pytest.raises(ValueError, match="has 49408 pieces; config.json says vocab_size = 60"):
        clip_inputs.read_text(pipeline)
    letters = write_text_folder(tmp_path / "letters")
    for name in ("vocab.json", "merges.txt"):
        (letters / name).replace(pipeline / "tokenizer" / name)
    found = [clip_inputs.read_text(folder) for folder in (pipeline, encoder)]
    assert found[0].network == found[1].network
    assert found[0].tokenizer.hash == found[1].tokenizer.hash

    whole = golden_files.write_folder(pipeline / "whole", golden_files.read("clip_whole"))
    network, params, _ = clip_inputs.read_text(whole)
    assert network.config.projection == 0 and "projection" not in params and "words" in params
    vision = golden_files.write_folder(pipeline / "vision", golden_files.read("clip_vision"))
    with pytest.raises(ValueError, match="is an image encoder without a text encoder"):
        clip_inputs.read_text(vision)
