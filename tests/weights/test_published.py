"""Folders of published weights: what was loaded once is compared at every later load."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from vdm_jax.weights import fetch, published

SHAPES = {"layer": {"bias": np.zeros(3, np.float32)}}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "CACHE", tmp_path / "cache")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"width": 3}))
    safetensors.numpy.save_file({"bias": np.arange(3.0, dtype="f4")}, folder / "model.safetensors")
    return folder


def load(folder):
    return published.read_params(published.Tensors(folder), SHAPES, lambda path: "bias")


def flip(path, at):
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("file,at", [("model.safetensors", -1), ("config.json", -2)])
def test_a_changed_file_is_refused_by_name(folder, file, at):
    np.testing.assert_array_equal(load(folder)["layer"]["bias"], [0, 1, 2])
    load(folder)
    flip(folder / file, at)
    with pytest.raises(ValueError, match=rf"{file}: not as at the first load"):
        load(folder)
    flip(folder / file, at)
    load(folder)


def test_a_load_that_fails_records_nothing(folder):
    published.Tensors(folder)  # and no network is made of it, say because config.json is wrong
    flip(folder / "config.json", -2)
    load(folder)
    (folder / published.RECORD).write_text("{")
    with pytest.raises(ValueError, match="the digests of the first load cannot be read"):
        load(folder)


def test_a_folder_that_cannot_be_written_is_recorded_in_the_cache(folder, monkeypatch):
    written = published.Path.write_text

    def refuses(path, *arguments, **options):
        if path.parent == folder:
            raise PermissionError(path)
        return written(path, *arguments, **options)

    monkeypatch.setattr(published.Path, "write_text", refuses)
    load(folder)
    assert not (folder / published.RECORD).exists()
    flip(folder / "model.safetensors", -1)
    with pytest.raises(ValueError, match=r"model\.safetensors: not as at the first load"):
        load(folder)


NETWORK = {
    "linear": {"kernel": np.zeros((4, 3)), "bias": np.zeros(3)},
    "query": {"kernel": np.zeros((4, 2, 3)), "bias": np.zeros((2, 3))},
    "out": {"kernel": np.zeros((2, 3, 4)), "bias": np.zeros(4)},
    "pointwise": {"kernel": np.zeros((4, 5))},
    "conv": {"kernel": np.zeros((3, 1, 4, 5))},
    "over_time": {"kernel": np.zeros((3, 1, 1, 4, 5))},
    "norm": {"scale": np.zeros(4)},
    "words": {"embedding": np.zeros((7, 4))},
    "layers": {"dense": {"kernel": np.zeros((2, 4, 3))}},
}
PUBLISHED_SHAPES = {
    "linear.weight": (3, 4),
    "linear.bias": (3,),
    "query.weight": (6, 4),
    "query.bias": (6,),
    "out.weight": (4, 6),
    "out.bias": (4,),
    "pointwise.weight": (5, 4, 1, 1),
    "conv.weight": (5, 4, 3, 1),
    "over_time.weight": (5, 4, 3, 1, 1),
    "norm.weight": (4,),
    "words.weight": (7, 4),
    "layers.0.dense.weight": (3, 4),
    "layers.1.dense.weight": (3, 4),
}


def name_in_network(path):
    *modules, leaf = path.split("/")
    kind = "bias" if leaf == "bias" else "weight"
    if modules[0] == "layers":
        return [f"layers.{i}.dense.{kind}" for i in range(2)]
    name = f"{modules[0]}.{kind}"
    return published.Place(name, ones=2) if modules[0] == "pointwise" else name


@pytest.fixture
def network(tmp_path, monkeypatch):
    monkeypatch.setattr(fetch, "CACHE", tmp_path / "cache")
    folder = tmp_path / "network"
    folder.mkdir()
    draw = np.random.default_rng(0)
    tensors = {
        name: draw.normal(size=shape).astype(np.float16) for name, shape in PUBLISHED_SHAPES.items()
    }
    safetensors.numpy.save_file(tensors, folder / "model.safetensors")
    return folder, tensors


def read_network(folder, **options):
    stem = options.pop("stem", published.TRANSFORMERS)
    return published.read_params(
        published.Tensors(folder, stem), NETWORK, name_in_network, **options
    )


def test_a_large_tensor_is_read_in_parts(network, monkeypatch):
    folder, _ = network
    whole = read_network(folder)
    monkeypatch.setattr(published, "_PART_BYTES", 20)  # two rows of four float16 numbers
    parts = [rows for rows, _ in published.Tensors(folder).parts("words.weight")]
    assert parts == [slice(0, 2), slice(2, 4), slice(4, 6), slice(6, 8)]
    jax.tree.map(np.testing.assert_array_equal, read_network(folder), whole)


def test_kernels_are_transposed_and_heads_are_split(network):
    folder, tensors = network
    params = read_network(folder)
    x = np.random.default_rng(1).normal(size=4).astype(np.float32)
    np.testing.assert_allclose(
        x @ params["linear"]["kernel"], tensors["linear.weight"] @ x, rtol=1e-3, atol=1e-6
    )
    heads = np.einsum("i,ihd->hd", x, params["query"]["kernel"])
    np.testing.assert_allclose(heads.reshape(-1), tensors["query.weight"] @ x, rtol=1e-3, atol=1e-6)
    merged = np.einsum("hd,hdo->o", heads, params["out"]["kernel"])
    wanted = tensors["out.weight"].astype("f4") @ heads.reshape(-1)
    np.testing.assert_allclose(merged, wanted, rtol=1e-3, atol=1e-6)
    conv = tensors["conv.weight"]
    assert params["conv"]["kernel"][2, 0, 1, 3] == conv[3, 1, 2, 0]
    over_time = tensors["over_time.weight"]
    assert params["over_time"]["kernel"][2, 0, 0, 1, 3] == over_time[3, 1, 2, 0, 0]
    assert params["layers"]["dense"]["kernel"][1, 2, 0] == tensors["layers.1.dense.weight"][0, 2]


@pytest.mark.parametrize("shard_bytes", [10**9, 100])
def test_what_is_written_is_read_again_bit_by_bit(network, tmp_path, shard_bytes):
    folder, tensors = network
    params, copy = read_network(folder), tmp_path / "copy"
    published.write_params(
        copy,
        params,
        name_in_network,
        config={"_class_name": "Network"},
        stem=published.DIFFUSERS,
        dtype=np.float16,
        shard_bytes=shard_bytes,
    )
    files = sorted(copy.glob("*.safetensors"))
    assert (len(files) > 1) == (shard_bytes == 100)
    written = {}
    for file in files:
        written |= safetensors.numpy.load_file(file)
    assert written.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(written[name], tensor)
    again = read_network(copy, stem=published.DIFFUSERS)
    np.testing.assert_array_equal(again["query"]["kernel"], params["query"]["kernel"])
    with pytest.raises(FileExistsError, match=r"config\.json"):
        published.write_params(copy, params, name_in_network, config={})


def test_every_tensor_is_used_or_named_and_every_parameter_filled_or_named(network):
    folder, tensors = network
    file = folder / "model.safetensors"

    def rewrite(changed):
        safetensors.numpy.save_file(changed, file)
        (folder / published.RECORD).unlink(missing_ok=True)

    rewrite({**tensors, "old.ids": tensors["norm.weight"]})
    with pytest.raises(ValueError, match=r"has no old\.ids"):
        read_network(folder)
    read_network(folder, unused=lambda name: name.endswith(".ids"))
    rewrite({name: tensor for name, tensor in tensors.items() if name != "conv.weight"})
    with pytest.raises(ValueError, match=r"lacks the tensor conv\.weight"):
        read_network(folder)
    rewrite({**tensors, "conv.weight": tensors["linear.weight"]})
    with pytest.raises(ValueError, match=r"conv\.weight has shape \(3, 4\).*\(5, 4, 3, 1\)"):
        read_network(folder)
    rewrite({f"old.{name}": tensor for name, tensor in tensors.items()})
    read_network(folder, renamed=lambda name: name.removeprefix("old."))


def test_files_that_are_no_weights_are_named(network):
    folder, _ = network
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    with pytest.raises(ValueError, match=r"model\.safetensors: cannot be read.*truncated"):
        published.Tensors(folder)
    file.rename(folder / "model.ckpt")
    with pytest.raises(FileNotFoundError, match=r"model\.ckpt: a pickle"):
        published.Tensors(folder)
    for shard, message in [("../model.safetensors", "files of this folder"), ("a.bin", "allowed")]:
        index = {"weight_map": {"norm.weight": shard}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(ValueError, match=message):
            published.Tensors(folder)
    index = {"weight_map": {"norm.weight": "model-2.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FileNotFoundError, match=r"model-2\.safetensors: no such file"):
        published.Tensors(folder)
