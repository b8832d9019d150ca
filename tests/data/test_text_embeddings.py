"""Stored embeddings are those of the encoder, whoever computed them, however often it stopped."""

import hashlib
import json
import pickle

import numpy as np
import pytest

from vdm_jax.data import text_embeddings
from vdm_jax.data.pipeline import ClipDataset
from vdm_jax.data.source import ClipSource, DataError

CAPTIONS = [f"{'very ' * (i % 4)}small shape {i}" for i in range(23)] + [""]


class Encoder:
    """Draws a caption's states from its hash, one a word; counts what it is asked for."""

    name, vocab_size, embedding_width, null_text = "fake", 0, 3, None

    def __init__(self, max_length=6, identity="0123456789abcdef0123"):
        self.max_length, self.identity = max_length, identity
        self.asked = []

    def example(self):
        return self.encode([""])

    def encode(self, captions, *, strict=False):
        self.asked += captions
        mask = np.zeros((len(captions), self.max_length), bool)
        states = np.zeros((*mask.shape, self.embedding_width), np.float16)
        for row, caption in enumerate(captions):
            count = min(len(caption.split()) + 1, self.max_length)
            seed = int.from_bytes(hashlib.sha256(caption.encode()).digest()[:4], "little")
            states[row, :count] = np.random.default_rng(seed).normal(size=(count, 3))
            mask[row, :count] = True
        return {"text_embeddings": states, "token_mask": mask}


def write(folder, encoder, captions, per_shard=5):
    return sum(text_embeddings.write(folder, encoder, captions, per_shard=per_shard))


@pytest.fixture
def written(tmp_path):
    encoder = Encoder()
    folder = text_embeddings.folder_of(tmp_path, encoder)
    captions = text_embeddings.share(CAPTIONS)
    assert write(folder, encoder, captions) == len(CAPTIONS)
    return tmp_path, folder, captions


def open_(data_dir, captions=CAPTIONS, identity=""):
    return text_embeddings.stored(data_dir, "fake", Encoder(), identity, captions)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, leaf in expected.items():
        assert found[name].dtype == leaf.dtype
        np.testing.assert_array_equal(found[name], leaf)


def test_stored_embeddings_are_those_of_the_encoder(written):
    data_dir, folder, _ = written
    assert folder == data_dir / "text_embeddings" / "fake-0123456789abcdef"
    assert len([*folder.glob("*.safetensors")]) == 5
    stored = open_(data_dir)
    asked = [CAPTIONS[3], CAPTIONS[20], CAPTIONS[3], "", CAPTIONS[0]]
    assert_equal(stored.encode(asked), Encoder().encode(asked))
    sent = pickle.loads(pickle.dumps(stored))
    assert_equal(sent.encode(CAPTIONS), Encoder().encode(CAPTIONS))
    example = stored.example()
    assert {k: (v.shape, v.dtype) for k, v in example.items()} == {
        k: (v.shape, v.dtype) for k, v in Encoder().example().items()
    }
    assert stored.encode([])["text_embeddings"].shape == (0, 6, 3)


def test_the_text_that_stands_for_no_text_is_stored_too(tmp_path):
    encoder = Encoder()
    encoder.null_text = "none"
    folder = text_embeddings.folder_of(tmp_path, encoder)
    write(folder, encoder, CAPTIONS)
    options = {"name": "fake", "text_encoder": encoder, "identity": ""}
    with pytest.raises(DataError, match="lacks 1 captions, such as 'none'"):
        text_embeddings.stored(tmp_path, captions=CAPTIONS, **options)
    assert text_embeddings.with_null(["a"], None) == ["a"]
    write(folder, encoder, text_embeddings.with_null([], encoder.null_text))
    stored = text_embeddings.stored(tmp_path, captions=CAPTIONS, **options)
    assert pickle.loads(pickle.dumps(stored)).null_text == "none"
    assert_equal(stored.encode(["none"]), Encoder().encode(["none"]))
    dataset = ClipDataset(Source(), text_encoder=stored, batch_size=2, image_frames=1, workers=0)
    batch = next(iter(dataset))
    null = {name: batch[f"null_{name}"] for name in ("text_embeddings", "token_mask")}
    assert_equal(null, Encoder().encode(["none"] * 2))
    assert not any(name.startswith("image_null") for name in batch)


def test_only_what_is_missing_is_computed(written):
    data_dir, folder, captions = written
    assert text_embeddings.missing(folder, captions) == []
    removed = sorted(folder.glob("*.safetensors"))[2]
    content = removed.read_bytes()
    removed.unlink()
    with pytest.raises(DataError, match=r"lacks [45] captions, such as .*vdm data embed"):
        open_(data_dir)
    encoder = Encoder()
    write(folder, encoder, text_embeddings.missing(folder, captions))
    assert len(encoder.asked) in (4, 5) and removed.read_bytes() == content
    # New captions come beside the old ones.
    encoder = Encoder()
    more = text_embeddings.missing(folder, [*captions, "a new one", "another"])
    write(folder, encoder, more)
    assert encoder.asked == ["a new one", "another"]
    assert_equal(open_(data_dir).encode(more), Encoder().encode(more))


def test_interrupted_work_is_kept(tmp_path):
    encoder = Encoder()
    folder = text_embeddings.folder_of(tmp_path, encoder)
    captions = text_embeddings.share(CAPTIONS)
    working = text_embeddings.write(folder, encoder, captions, per_shard=5)
    assert [next(working), next(working)] == [5, 5]
    working.close()
    # A process killed while it writes leaves part of a file under another name.
    (folder / ".deadbeef.safetensors.0123").write_bytes(b"part")
    left = text_embeddings.missing(folder, captions)
    assert left == captions[10:]
    write(folder, encoder, left)
    assert_equal(open_(tmp_path).encode(CAPTIONS), Encoder().encode(CAPTIONS))


def test_processes_share_the_captions(tmp_path):
    folder = text_embeddings.folder_of(tmp_path, Encoder())
    shares = [text_embeddings.share(CAPTIONS[::-1] * 2, part, 3) for part in range(3)]
    assert sorted(sum(shares, [])) == sorted(CAPTIONS) and all(shares)
    for part, captions in enumerate(shares):
        assert captions == text_embeddings.share(CAPTIONS, part, 3)
        write(folder, Encoder(), captions)
    assert_equal(open_(tmp_path).encode(CAPTIONS), Encoder().encode(CAPTIONS))


def test_what_is_not_there_is_named(written):
    data_dir, folder, captions = written
    with pytest.raises(DataError, match=r"lacks the caption 'unheard of'.*vdm data embed"):
        open_(data_dir).encode(["unheard of"])
    for identity, max_length, message in (
        ("", 7, "no embeddings .* with text.max_length = 7. Compute them: vdm data embed"),
        ("ffff", 6, "text.identity = 'ffff'; there are 0123456789abcdef"),
    ):
        with pytest.raises(DataError, match=message):
            text_embeddings.find(data_dir, "fake", max_length, identity)
    other = Encoder(identity="fedcba98765432100123")
    write(text_embeddings.folder_of(data_dir, other), other, captions)
    with pytest.raises(DataError, match="set text.identity to one of 0123456789abcdef, fedcba98"):
        open_(data_dir)
    assert open_(data_dir, identity="fed").folder.name == "fake-fedcba9876543210"
    narrow = Encoder()
    narrow.embedding_width = 2
    with pytest.raises(DataError, match="of width 3, but text.encoder = 'fake' has 2"):
        text_embeddings.stored(data_dir, "fake", narrow, "0", captions)
    shard = next(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(DataError, match=rf"{shard.name}: damaged .* Delete it"):
        text_embeddings.missing(folder, captions)
    (folder / "meta.json").write_text("{")
    with pytest.raises(DataError, match=r"meta\.json: not a JSON file"):
        open_(data_dir)


def test_the_description_says_what_is_stored(written):
    _, folder, _ = written
    assert json.loads((folder / "meta.json").read_text()) == {
        "format": 1,
        "name": "fake",
        "identity": Encoder().identity,
        "max_length": 6,
        "embedding_width": 3,
    }


class Source(ClipSource):
    """Clip i is filled with i."""

    video_shape = (2, 4, 4, 3)

    def __len__(self):
        return len(CAPTIONS)

    def read(self, index, rng=None):
        return {"video": np.full(self.video_shape, index, np.uint8), "caption": CAPTIONS[index]}

    def captions(self):
        return CAPTIONS


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_the_embeddings_of_their_clips(written, workers):
    dataset = ClipDataset(
        Source(), text_encoder=open_(written[0]), batch_size=4, image_frames=2, workers=workers
    )
    iterator = iter(dataset)
    batch = next(iterator)
    iterator.close()
    expected = Encoder().encode([CAPTIONS[i] for i in batch["video"][:, 0, 0, 0, 0]])
    assert_equal({name: batch[name] for name in expected}, expected)
    assert batch["image_text_embeddings"].shape == (4, 2, 6, 3)
    numbers = batch["images"][:, :, 0, 0, 0].ravel()
    expected = Encoder().encode([CAPTIONS[i] for i in numbers])
    for name, leaf in expected.items():
        np.testing.assert_array_equal(batch[f"image_{name}"].reshape(leaf.shape), leaf)
