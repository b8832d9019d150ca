"""Files of models: every bit matters, adapted models, and what a run keeps of a frozen model."""

import json

import jax
import numpy as np
import pytest
import safetensors.numpy

from vdm_jax import systems
from vdm_jax.pipelines import model as pretrained
from vdm_jax.pipelines import model_file


@pytest.fixture
def tiny_system(monkeypatch, stage):
    monkeypatch.setattr(systems, "build", lambda config: stage)


@pytest.fixture(scope="module")
def params(stage):
    return stage.init(jax.random.key(0))


def test_every_bit_of_a_file_matters(tiny_system, stage, params, make_config, tmp_path):
    path = pretrained.save_model(tmp_path / "tiny.safetensors", params, make_config())
    whole = path.read_bytes()
    abstract = jax.eval_shape(stage.init, jax.random.key(0))
    place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), abstract
    )
    pretrained.read_params(path, abstract)
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    # The length of the header, its text, the digest in it, and the tensors.
    digest = whole.index(model_file.read_header(path).digest.encode())
    spans = [(0, 8), (8, header), (digest, digest + 64), (header, len(whole))]
    for number in range(240):
        low, high = spans[number % 4]
        at, bit = int(rng.integers(low, high)), int(rng.integers(8))
        flipped = bytearray(whole)
        flipped[at] ^= 1 << bit
        damaged = tmp_path / f"flipped_{number}.safetensors"
        damaged.write_bytes(flipped)
        with pytest.raises(ValueError, match=damaged.name):
            pretrained.read_config(damaged)
    for length in (0, 5, 100, header, len(whole) - 1):
        damaged = tmp_path / f"short_{length}.safetensors"
        damaged.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=damaged.name):
            pretrained.read_config(damaged)


def test_a_file_without_a_digest_is_read_with_a_warning(
    tiny_system, params, make_config, tmp_path, assert_trees_equal
):
    new = pretrained.save_model(tmp_path / "new.safetensors", params, make_config())
    old = tmp_path / "old.safetensors"
    metadata = {"format": "vdm_jax/1"}
    metadata["config"] = json.dumps(dict(model_file.read_header(new).config))
    safetensors.numpy.save_file(model_file.read_tensors(new), old, metadata=metadata)
    with pytest.warns(UserWarning, match=r"old\.safetensors: was written without a digest"):
        model = pretrained.load(old)
    assert_trees_equal(model.params, params)
    assert pretrained.digest(old) != pretrained.digest(new)


def test_an_adapted_model_holds_its_difference_and_names_its_base(
    tiny_system, params, make_config, tmp_path, assert_trees_equal
):
    config = make_config()
    base = pretrained.save_model(tmp_path / "base.safetensors", params, config, half=True)
    rounded = pretrained.load(base).params
    changed = {**rounded, "Dense_0": jax.tree.map(lambda leaf: leaf + 1.0, rounded["Dense_0"])}
    adapted = pretrained.save_model(
        tmp_path / "deep" / "adapted.safetensors", changed, config, base=base
    )
    assert set(model_file.read_tensors(adapted)) == {"Dense_0/kernel", "Dense_0/bias"}
    assert_trees_equal(pretrained.load(adapted).params, changed)
    assert model_file.read_header(adapted).base.digest == pretrained.digest(base)

    base.rename(tmp_path / "elsewhere.safetensors")
    with pytest.raises(FileNotFoundError, match=r"adapted of '\.\./base\.safetensors' \(sha256:"):
        pretrained.load(adapted)
    pretrained.save_model(base, changed, config)
    with pytest.raises(ValueError, match=r"was adapted from '\.\./base\.safetensors'"):
        pretrained.load(adapted)


def test_an_adapted_model_of_a_shipped_one_names_it(
    tiny_system, params, make_config, tmp_path, monkeypatch, assert_trees_equal
):
    monkeypatch.setattr(pretrained, "SHIPPED", tmp_path / "shipped")
    pretrained.save_model(tmp_path / "shipped" / "a" / "b.safetensors", params, make_config())
    path = tmp_path / "adapted.safetensors"
    pretrained.save_model(path, params, make_config(), base="a/b")
    assert model_file.read_header(path).base.name == "a/b"
    assert model_file.read_tensors(path) == {}
    assert_trees_equal(pretrained.load(path).params, params)


def test_a_failed_write_leaves_the_old_file(params, make_config, tmp_path, monkeypatch):
    path = pretrained.save_model(tmp_path / "tiny.safetensors", params, make_config())
    before = path.read_bytes()

    def fails(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr(model_file, "_hash", fails)
    with pytest.raises(OSError, match="no space"):
        pretrained.save_model(path, params, make_config())
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.safetensors"]


def test_the_same_call_is_compiled_once(tiny_system, params, make_config, tmp_path):
    path = pretrained.save_model(tmp_path / "tiny.safetensors", params, make_config())
    model = pretrained.load(path)
    sampler = model.sampler(steps=2, guidance=2.0)
    assert model.sampler(guidance=2.0, steps=2, eta=None) is sampler
    assert model.sampler(guidance=3.0, steps=2) is not sampler
    for steps in range(3, 30):
        model.sampler(steps=steps)
    assert model.sampler(steps=2, guidance=2.0) is not sampler  # only so many are kept
