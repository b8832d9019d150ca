"""T5's encoder computes what it is defined to, from published files, on one device and on many."""

import functools
import io
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import sentencepiece

from tests.weights import golden_files
from vdm_jax.models.text import t5
from vdm_jax.models.text import token_attention as transformer
from vdm_jax.models.text.subwords import SentencePiece
from vdm_jax.models.text.t5 import T5Config
from vdm_jax.weights import published
from vdm_jax.weights import t5 as t5_weights

ROOT = Path(__file__).parents[3]
TINY = T5Config(
    width=12, hidden=20, num_layers=2, heads=3, head_dim=5, vocab_size=60, buckets=8, max_distance=9
)
TEXTS = ["a red ball rolls to the left", "two blue squares move up", "the ball is small and red"]


@functools.cache
def spiece(vocab_size=30, **changes):
    """A tokeniser made of a few sentences, with T5's special pieces."""
    written = io.BytesIO()
    special = {"pad_id": 0, "eos_id": 1, "unk_id": 2, "bos_id": -1} | changes
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=written,
        vocab_size=vocab_size,
        minloglevel=2,
        **special,
    )
    return written.getvalue()


def published_config(config):
    return {
        "model_type": "t5",
        "feed_forward_proj": "gated-gelu",
        "d_model": config.width,
        "d_ff": config.hidden,
        "d_kv": config.head_dim,
        "num_layers": config.num_layers,
        "num_heads": config.heads,
        "vocab_size": config.vocab_size,
        "relative_attention_num_buckets": config.buckets,
        "relative_attention_max_distance": config.max_distance,
        "layer_norm_epsilon": config.epsilon,
    }


def random_tensors(config=TINY, seed=0):
    """Under their published names; every one matters."""
    draws = np.random.default_rng(seed)
    inner = config.heads * config.head_dim
    shapes = {
        "shared.weight": (config.vocab_size, config.width),
        "encoder.final_layer_norm.weight": (config.width,),
        "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": (
            config.buckets,
            config.heads,
        ),
    }
    for i in range(config.num_layers):
        for name, shape in {
            "0.SelfAttention.q": (inner, config.width),
            "0.SelfAttention.k": (inner, config.width),
            "0.SelfAttention.v": (inner, config.width),
            "0.SelfAttention.o": (config.width, inner),
            "0.layer_norm": (config.width,),
            "1.DenseReluDense.wi_0": (config.hidden, config.width),
            "1.DenseReluDense.wi_1": (config.hidden, config.width),
            "1.DenseReluDense.wo": (config.width, config.hidden),
            "1.layer_norm": (config.width,),
        }.items():
            shapes[f"encoder.block.{i}.layer.{name}.weight"] = shape
    return {
        name: draws.normal(size=shape, scale=0.3).astype(np.float32) + np.float32("norm" in name)
        for name, shape in shapes.items()
    }


def write_folder(folder, tensors=None, config=TINY, shards=1):
    folder.mkdir(exist_ok=True)
    (folder / published.RECORD).unlink(missing_ok=True)  # other files are meant
    tensors = tensors or random_tensors(config)
    if shards == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    else:
        names = sorted(tensors)
        where = {
            name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors"
            for i, name in enumerate(names)
        }
        for file in set(where.values()):
            part = {name: tensors[name] for name in names if where[name] == file}
            safetensors.numpy.save_file(part, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (folder / "config.json").write_text(json.dumps(published_config(config)))
    (folder / "spiece.model").write_bytes(spiece())
    return folder


def plain_bucket(offset, buckets, max_distance):
    """In whole numbers: from e on, bucket e + k begins at e (max / e)^(k / n), n buckets in all."""
    half = buckets // 2
    e, n, distance = half // 2, half - half // 2, abs(offset)
    bucket = distance
    if distance >= e:
        bucket = e + max(k for k in range(n) if distance**n * e**k >= e**n * max_distance**k)
    return bucket + (half if offset > 0 else 0)


def plain_t5(tensors, config, tokens, mask):
    """One sentence, one head and one query at a time, in float64."""
    t = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    table = t["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"]
    out = []

    def norm(x, name):
        return (
            np.stack([row / np.sqrt((row @ row) / len(row) + config.epsilon) for row in x])
            * (t[f"{name}.weight"])
        )

    def gelu(x):
        return x / (1 + np.exp(-2 * np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))

    for row, seen in zip(tokens, mask, strict=True):
        seen = np.flatnonzero(seen)
        x = t["shared.weight"][row]
        for i in range(config.num_layers):
            block = f"encoder.block.{i}.layer"
            h = norm(x, f"{block}.0.layer_norm")
            q, k, v = (h @ t[f"{block}.0.SelfAttention.{name}.weight"].T for name in "qkv")
            attended = np.zeros_like(q)
            for head in range(config.heads):
                part = slice(head * config.head_dim, (head + 1) * config.head_dim)
                for place in range(len(row)):
                    weights = np.zeros(len(row))
                    for other in seen:
                        bucket = plain_bucket(other - place, config.buckets, config.max_distance)
                        score = q[place, part] @ k[other, part] + table[bucket, head]
                        weights[other] = np.exp(score)
                    attended[place, part] = weights @ v[:, part] / weights.sum()
            x = x + attended @ t[f"{block}.0.SelfAttention.o.weight"].T
            h = norm(x, f"{block}.1.layer_norm")
            name = f"{block}.1.DenseReluDense"
            h = gelu(h @ t[f"{name}.wi_0.weight"].T) * (h @ t[f"{name}.wi_1.weight"].T)
            x = x + h @ t[f"{name}.wo.weight"].T
        out.append(norm(x, "encoder.final_layer_norm"))
    return np.stack(out)


def example(config=TINY, length=24):
    draws = np.random.default_rng(1)
    tokens = draws.integers(0, config.vocab_size, (3, length)).astype(np.int32)
    return tokens, np.arange(length) < np.array([length, length // 2, 1])[:, None]


def run(loaded, tokens, mask):
    apply = jax.jit(lambda *args: loaded.network.apply({"params": loaded.params}, *args))
    return apply(jnp.asarray(tokens), jnp.asarray(mask))


def test_buckets_of_relative_positions():
    for buckets, max_distance in ((32, 128), (8, 9), (16, 50)):
        offsets = np.arange(-2 * max_distance, 2 * max_distance + 1)
        expected = [plain_bucket(int(o), buckets, max_distance) for o in offsets]
        assert t5.relative_buckets(offsets, buckets, max_distance).tolist() == expected
        assert set(expected) == set(range(buckets)) - {buckets // 2}  # nothing lies 0 later


def test_network_is_the_published_one(tmp_path):
    loaded = t5_weights.read_folder(write_folder(tmp_path))
    assert loaded.network.config == TINY
    tokens, mask = example()
    found = run(loaded, tokens, mask)
    expected = plain_t5(random_tensors(), TINY, tokens, mask)
    np.testing.assert_allclose(found[mask], expected[mask], atol=1e-4)
    half = t5_weights.read_folder(tmp_path, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(half.params)} == {jnp.dtype(jnp.bfloat16)}
    found = run(half, tokens, mask)
    assert found.dtype == jnp.bfloat16
    off = found[mask].astype(np.float32) - expected[mask]
    assert np.sqrt((off**2).mean()) < 0.05 * np.sqrt((expected[mask] ** 2).mean())


def test_shards_and_names_of_the_table(tmp_path):
    tensors = random_tensors()
    loaded = t5_weights.read_folder(write_folder(tmp_path / "one", tensors))
    renamed = {"encoder.embed_tokens.weight": tensors["shared.weight"]} | {
        name: tensor for name, tensor in tensors.items() if name != "shared.weight"
    }
    extra = {"decoder.final_layer_norm.weight": np.ones(3, np.float32)}
    sharded = t5_weights.read_folder(write_folder(tmp_path / "three", renamed | extra, shards=3))
    jax.tree.map(np.testing.assert_array_equal, loaded.params, sharded.params)
    half = {name: tensor.astype(jnp.bfloat16) for name, tensor in tensors.items()}
    from_half = t5_weights.read_folder(write_folder(tmp_path / "half", half), jnp.bfloat16)
    rounded = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), loaded.params)
    jax.tree.map(np.testing.assert_array_equal, rounded, from_half.params)


@pytest.mark.parametrize("name", ["t5_few_buckets", "t5"])
def test_network_equals_the_original(name, tmp_path):
    """Recorded by tests/weights/record_text.py."""
    golden = golden_files.read(name)
    folder = golden_files.write_folder(tmp_path, golden)
    (folder / "spiece.model").write_bytes(spiece())
    network, params, _ = t5_weights.read_folder(folder)
    golden_files.check_text_encoder(network, params, golden.values)


def test_sizes_are_the_published_ones():
    """Parameters of the encoders, in millions."""
    expected = {"small": 35.3, "base": 109.6, "large": 341.2, "xl": 1223.5, "xxl": 4762.3}
    for name, millions in expected.items():
        shapes = transformer.shapes(t5.T5Encoder(t5.SIZES[name]))
        count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
        assert abs(count / 1e6 - millions) < 0.05, name


def test_pieces_of_words():
    tokenizer = SentencePiece(spiece())
    tokens, mask = tokenizer.encode([TEXTS[0], "", "a red ball"], 64)
    assert tokens.shape == (3, 64) and tokens.dtype == np.int32
    np.testing.assert_array_equal(mask, tokens > 0)
    lengths = mask.sum(-1)
    assert lengths[1] == 1 and all(tokens[i, n - 1] == 1 for i, n in enumerate(lengths))
    processor = sentencepiece.SentencePieceProcessor(model_proto=spiece())
    assert processor.decode(tokens[0, : lengths[0] - 1].tolist()) == TEXTS[0]
    cut, mask = tokenizer.encode(TEXTS[:1], 5)
    assert cut[0].tolist() == [*tokens[0, :4], 1] and mask.all()
    with pytest.raises(ValueError, match=rf"{lengths[0]} tokens; at most text.max_length = 5"):
        tokenizer.encode(TEXTS[:1], 5, strict=True)
    sent = pickle.loads(pickle.dumps(tokenizer))
    assert sent.hash == tokenizer.hash
    np.testing.assert_array_equal(sent.encode(TEXTS, 9)[0], tokenizer.encode(TEXTS, 9)[0])
    with pytest.raises(ValueError, match="spiece.model cannot be read"):
        SentencePiece(b"something else")
    with pytest.raises(ValueError, match="T5 has </s> = 1 and padding = 0"):
        SentencePiece(spiece(eos_id=3))


def test_wrong_files_are_named(tmp_path):
    tensors = random_tensors()
    folder = write_folder(tmp_path / "model", tensors)
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    others = {key: tensor for key, tensor in tensors.items() if key != name}
    for change, message in (
        ({}, f"lacks the tensor {name}"),
        ({name: np.zeros((12, 21), np.float32)}, rf"{name} has shape \(12, 21\).*\(12, 20\)"),
    ):
        write_folder(folder, others | change)
        with pytest.raises(ValueError, match=message):
            t5_weights.read_folder(folder)
    (folder / "model.safetensors").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read"):
        t5_weights.read_folder(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model\.bin: a pickle"):
        t5_weights.read_folder(folder)
    sharded = write_folder(tmp_path / "sharded", tensors, shards=2)
    (sharded / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="00002-of-00002.safetensors: no such file, but"):
        t5_weights.read_folder(sharded)
    for change, message in (
        ({"feed_forward_proj": "relu"}, "feed_forward_proj = 'relu': allowed are"),
        ({"model_type": "bert"}, "model_type = 'bert'"),
        ({"vocab_size": 20}, "has 30 pieces; config.json says vocab_size = 20"),
        ({"vocab_size": 61}, r"shared\.weight has shape \(60, 12\).*\(61, 12\)"),
    ):
        write_folder(folder, tensors)
        (folder / "config.json").write_text(json.dumps(published_config(TINY) | change))
        with pytest.raises(ValueError, match=message):
            t5_weights.read_folder(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not a JSON file"):
        t5_weights.read_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"config\.json: no such file"):
        t5_weights.read_folder(folder)


ON_EIGHT_DEVICES = """
import sys
from types import SimpleNamespace
import jax, numpy as np
from tests.models.text.test_t5 import T5Config, example, run
from vdm_jax.models.text import t5
from vdm_jax.models.text import token_attention as transformer
from vdm_jax.parallel import hlo, sharding
config = T5Config(width=16, hidden=32, num_layers=2, heads=4, head_dim=4, vocab_size=64)
network = t5.T5Encoder(config)
described = SimpleNamespace(abstract_params=lambda: transformer.abstract_params(network))
sizes = {"data": 2, "fsdp": 2, "tensor": 2, "context": 1, "min_fsdp_size": 64}
plan = sharding.make_plan(described, sizes)
draws = np.random.default_rng(0)
params = jax.tree.map(
    lambda leaf: draws.normal(size=leaf.shape, scale=0.3).astype(np.float32),
    transformer.shapes(network),
)
tokens, mask = example(config)
tokens, mask = np.tile(tokens, (4, 1)), np.tile(mask, (4, 1))
placed = jax.device_put(params, plan.params)
for name in ("query", "out", "mlp_in", "mlp_out"):
    kernel = placed["layers"][name]["kernel"]
    assert kernel.addressable_shards[0].data.size * 4 == kernel.size, name
apply = jax.jit(lambda params, *args: network.apply({"params": params}, *args))
spread = apply(placed, *jax.device_put((tokens, mask), plan.batch))
alone = run(SimpleNamespace(network=network, params=params), tokens, mask)
np.testing.assert_allclose(np.asarray(spread)[mask], np.asarray(alone)[mask], atol=2e-5)
"""


def test_the_encoder_is_cut_over_devices():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", ON_EIGHT_DEVICES],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
