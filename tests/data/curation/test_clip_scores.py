"""Similarity is CLIP's own; aesthetics and unsafe content are the published heads on its
embeddings, with random weights."""

import dataclasses
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet
import pytest
import safetensors.numpy

from tests.data.curation import films
from vdm_jax.data.curation import clip_scores, curate, engine
from vdm_jax.data.curation.clips import View
from vdm_jax.data.curation.settings import Look, Settings
from vdm_jax.data.source import DataError
from vdm_jax.models.blocks.encoder import Transformer
from vdm_jax.models.clip import CLIP
from vdm_jax.models.text.clip import CLIPTextConfig
from vdm_jax.models.vision.clip import CLIPVisionConfig
from vdm_jax.models.vision.preprocessing import Preprocessing
from vdm_jax.weights import clip, clip_inputs

SIZES = ((7, 12), (5, 7), (1, 5))
LENGTH = 8


def tensors(sizes=SIZES):
    """As published: drop-out lies between the layers, so their numbers have gaps."""
    rng = np.random.default_rng(0)
    found = {}
    for number, (out, into) in enumerate(sizes):
        found[f"layers.{2 * number}.weight"] = rng.normal(size=(out, into)).astype(np.float32)
        found[f"layers.{2 * number}.bias"] = rng.normal(size=out).astype(np.float32)
    return found


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    path = tmp_path_factory.mktemp("head") / "head.safetensors"
    safetensors.numpy.save_file(tensors(), path)
    return str(path)


def encode(texts, length):
    """Bytes for tokens, and the end, which has the greatest number."""
    rows = [[*text.encode()[: length - 1], 255] for text in texts]
    return np.array([row + [255] * (length - len(row)) for row in rows], np.int32), None


@pytest.fixture(scope="module")
def network():
    transformer = Transformer(width=16, hidden=32, num_layers=1, heads=2)
    network = CLIP(
        CLIPTextConfig(
            transformer=transformer, vocab_size=256, max_positions=LENGTH, eos=255, projection=12
        ),
        CLIPVisionConfig(transformer=transformer, image_size=16, patch_size=8, projection=12),
    )
    inputs = jnp.zeros((1, LENGTH), jnp.int32), jnp.zeros((1, 16, 16, 3))
    params = nn.meta.unbox(network.init(jax.random.key(0), *inputs))["params"]
    # Positions and tokens start small: without this, all texts would look alike.
    return network, jax.tree.map(lambda leaf: np.asarray(leaf) * 3, params)


@pytest.fixture
def published(monkeypatch, network):
    """As if the folder of the settings held the network."""
    text = types.SimpleNamespace(tokenizer=types.SimpleNamespace(encode=encode))
    monkeypatch.setattr(clip, "read_folder", lambda folder: clip.Loaded(*network))
    monkeypatch.setattr(clip_inputs, "read_text", lambda folder: text)
    for cached in ("_read_clip", "_load_images", "load_texts"):
        getattr(clip_scores, cached).cache_clear()
    return "a folder"


def view(count=5):
    return View(seconds=1.0, fps=24.0, samples=list(films.scene(1, count)), tracks={}, hashes=[])


def test_similarity_is_clips(published, network):
    clips = view()
    pictures = clip_scores.stored(clip_scores.Embedder(published)(clips))
    texts = ["a street", "clouds"]
    images = jnp.asarray(Preprocessing(shorter=16, crop=(16, 16))(np.stack(clips.picks)))
    model, params = network
    logits = model.apply({"params": params}, jnp.asarray(encode(texts, LENGTH)[0]), images)
    expected = np.asarray(logits).mean(0) / np.exp(params["logit_scale"])
    embed = clip_scores.load_texts(published)
    found = [clip_scores.similarity(pictures, embed(text)) for text in texts]
    np.testing.assert_allclose(found, expected, atol=2e-3)  # stored in half precision
    assert abs(found[0] - found[1]) > 0.02


def test_aesthetics_is_the_heads(head):
    pictures = clip_scores.unit(np.random.default_rng(1).normal(size=(3, 12)).astype(np.float32))
    layers, x = tensors(), pictures.T
    for number in (0, 2, 4):
        x = layers[f"layers.{number}.weight"] @ x + layers[f"layers.{number}.bias"][:, None]
    found = clip_scores.head_scores(pictures, Look(clip="a folder", aesthetics=head))
    assert found == {"aesthetics": pytest.approx(x.mean(), rel=1e-5)}
    assert np.ptp(x) > 0.1


@pytest.fixture
def unsafe(tmp_path):
    """As published: rectifiers and drop-out take numbers, and none lies before the last layer."""
    path = tmp_path / "unsafe.safetensors"
    sizes = {0: (7, 12), 3: (5, 7), 6: (4, 5), 7: (1, 4)}
    rng = np.random.default_rng(3)
    found = {
        f"layers.{number}.{name}": rng.normal(size=size).astype(np.float32)
        for number, (out, into) in sizes.items()
        for name, size in (("weight", (out, into)), ("bias", out))
    }
    safetensors.numpy.save_file(found, path)
    return str(path)


def test_unsafe_content_is_the_heads_greatest(unsafe):
    pictures = clip_scores.unit(np.random.default_rng(1).normal(size=(3, 12)).astype(np.float32))
    layers, x = safetensors.numpy.load_file(unsafe), pictures.T
    for number in (0, 3, 6, 7):
        x = layers[f"layers.{number}.weight"] @ x + layers[f"layers.{number}.bias"][:, None]
        if number in (0, 3):
            assert (x < 0).any()
            x = np.maximum(x, 0)
    found = clip_scores.head_scores(pictures, Look(clip="a folder", nsfw=unsafe))
    assert found == {"nsfw": pytest.approx(x.max(), rel=1e-5)}
    assert np.ptp(x) > 0.01


def test_a_head_of_another_clip_is_refused(unsafe):
    with pytest.raises(DataError, match="look.nsfw: its head takes embeddings of 12 numbers"):
        clip_scores.head_scores(np.ones((3, 8), np.float32), Look(clip="a folder", nsfw=unsafe))


@pytest.mark.parametrize(
    "change,message",
    [
        ({"layers.2.bias": np.zeros(3, np.float32)}, "layer 2 does not continue"),
        ({"layers.6.weight": np.zeros((2, 1)), "layers.6.bias": np.zeros(2)}, "to one number"),
        ({"visual.proj": np.zeros(3)}, "the tensor visual.proj is none of a head's layers"),
    ],
)
def test_tensors_that_are_no_head_are_refused(tmp_path, change, message):
    path = tmp_path / "head.safetensors"
    safetensors.numpy.save_file({**tensors(), **change}, path)
    with pytest.raises(DataError, match=message):
        clip_scores.read_head("aesthetics", str(path))


def test_the_head_needs_clip():
    for name in ("aesthetics", "nsfw"):
        with pytest.raises(DataError, match=f"look.{name}: needs look.clip"):
            Settings(look=Look(**{name: "file"}))


def test_scores_come_with_the_captions_of_the_moment(published, head, unsafe, tmp_path):
    films.write(tmp_path / "videos" / "film.mp4", films.scene(1, 60))
    look = Look(clip=published, aesthetics=head, nsfw=unsafe)

    def scores(caption, **keep):
        (tmp_path / "videos" / "film.txt").write_text(caption)
        settings = Settings(look=look)
        settings = dataclasses.replace(settings, keep={**settings.keep, **keep})
        work = engine.Work(
            videos=str(tmp_path / "videos"), out=str(tmp_path / "out"), settings=settings
        )
        curate.run(work, films.serially, shards=False)
        (row,) = pyarrow.parquet.read_table(tmp_path / "out" / "clips.parquet").to_pylist()
        return row

    first, second = scores("a street"), scores("clouds")
    assert first["aesthetics"] == second["aesthetics"] and first["nsfw"] == second["nsfw"]
    assert abs(first["similarity"] - second["similarity"]) > 0.02
    assert scores("clouds\na street")["similarity"] == max(
        first["similarity"], second["similarity"]
    )
    dropped = scores("a street", similarity="2:")
    assert dropped["reason"].startswith("similarity") and not dropped["kept"]
