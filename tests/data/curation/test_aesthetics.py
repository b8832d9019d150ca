"""The aesthetics score is the published head on CLIP's embedding."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from tests.data.curation import films
from vdm_jax.data.curation import aesthetics
from vdm_jax.data.curation.clips import View
from vdm_jax.data.curation.settings import Look, Settings
from vdm_jax.data.source import DataError
from vdm_jax.models.blocks.encoder import Transformer
from vdm_jax.models.vision.clip import CLIPVisionConfig, CLIPVisionEncoder
from vdm_jax.models.vision.preprocessing import Preprocessing
from vdm_jax.weights import clip

SIZES = ((7, 12), (5, 7), (1, 5))


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
    return path


@pytest.fixture(scope="module")
def encoder():
    transformer = Transformer(width=16, hidden=32, num_layers=1, heads=2)
    config = CLIPVisionConfig(transformer=transformer, image_size=16, patch_size=8, projection=12)
    network = CLIPVisionEncoder(config)
    params = network.init(jax.random.key(0), jnp.zeros((1, 16, 16, 3)))["params"]
    return clip.Loaded(network, jax.device_get(nn.meta.unbox(params)))


def view(count=5):
    samples = list(films.scene(1, count))
    return View(seconds=1.0, fps=24.0, samples=samples, tracks={}, hashes=[])


def test_scores_are_the_heads(monkeypatch, head, encoder):
    monkeypatch.setattr(clip, "read_folder", lambda folder: encoder)
    scorer = aesthetics.Aesthetics(Look(clip="a folder", aesthetics=str(head)))
    clips = view()
    pictures = np.stack(clips.picks)
    images = jnp.asarray(Preprocessing(shorter=16, crop=(16, 16))(pictures))
    embedded = np.asarray(encoder.network.apply({"params": encoder.params}, images).pooled)
    x = (embedded / np.linalg.norm(embedded, axis=1, keepdims=True)).T
    for number in (0, 2, 4):
        layer = tensors()
        x = layer[f"layers.{number}.weight"] @ x + layer[f"layers.{number}.bias"][:, None]
    assert scorer(clips)["aesthetics"] == pytest.approx(x.mean(), rel=1e-4)
    assert np.ptp(x) > 1e-4


def test_a_head_that_does_not_fit_is_refused(monkeypatch, encoder, tmp_path):
    monkeypatch.setattr(clip, "read_folder", lambda folder: encoder)
    path = tmp_path / "wide.safetensors"
    safetensors.numpy.save_file(tensors(((1, 768),)), path)
    with pytest.raises(DataError, match="takes 768 features, but look.clip gives 12"):
        aesthetics.Aesthetics(Look(clip="folder", aesthetics=str(path)))(view())


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
    with pytest.raises(ValueError, match=message):
        aesthetics.read_head(path)


def test_both_files_are_needed():
    with pytest.raises(DataError, match="both are needed"):
        Settings(look=Look(clip="folder"))
