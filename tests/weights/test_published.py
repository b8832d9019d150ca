"""Folders of published weights: what was loaded once is compared at every later load."""

import json

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
