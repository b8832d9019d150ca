"""An image-text pair: its loss against its formula, its training, and its folder."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from vdm_jax import systems
from vdm_jax.models.vision.image_text import ConvolutionalEncoder, ImageTextConfig, ImageTextPair
from vdm_jax.pipelines import model as pretrained
from vdm_jax.stage import contrast
from vdm_jax.stage.image_encoder import IMAGE_ENCODER, normalised
from vdm_jax.systems import image_embedding, image_text
from vdm_jax.weights import fetch
from vdm_jax.weights import image_text as weights

SIZES = ImageTextConfig(image_size=8, widths=(4, 8), norm_groups=2, text_width=384, projection=6)


def make_config():
    """A pair of 8 x 8 pixels."""
    config = image_text.default_config().unlock()
    config.model.pair = weights.config(ImageTextPair(SIZES))
    config.text.max_length = 3
    config.data.image_size = 8
    return config


@pytest.fixture(scope="module")
def stage():
    return systems.build(make_config())


@pytest.fixture(scope="module")
def batch():
    """Four images, one of each colour, and captions of which the last two are equal."""
    rng = np.random.default_rng(0)
    video = rng.integers(0, 40, (4, 1, 8, 8, 3), np.uint8)
    for row, (channel, corner) in enumerate(((0, 0), (1, 4), (2, 0), (2, 4))):
        video[row, 0, corner : corner + 4, :4, channel] += 200
    states = rng.normal(size=(4, 3, 384)).astype(np.float16)
    mask = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [1, 0, 0]], bool)
    states[3] = states[2]
    states[3, 1:] = 7.0  # outside of the mask
    batch = {"video": video, "text_embeddings": states, "token_mask": mask}
    return jax.tree.map(jnp.asarray, batch)


@pytest.fixture(scope="module")
def trained(stage, batch):
    """The parameters after some updates, and the loss before each."""
    params = stage.init(jax.random.key(0))

    @jax.jit
    def update(params):
        (loss, _), grads = jax.value_and_grad(stage.loss, has_aux=True)(
            params, batch, jax.random.key(0)
        )
        return jax.tree.map(lambda p, g: p - 0.05 * g / jnp.abs(g).max(), params, grads), loss

    losses = []
    for _ in range(60):
        params, loss = update(params)
        losses.append(float(loss))
    return params, losses


def test_cross_entropy_equals_its_formula_and_equal_captions_share_their_images(batch):
    same = contrast.same_texts(batch["text_embeddings"], batch["token_mask"])
    wanted = np.eye(4, dtype=bool)
    wanted[2, 3] = wanted[3, 2] = True
    np.testing.assert_array_equal(same, wanted)
    scores = np.random.default_rng(1).normal(size=(4, 4))
    log_p = scores - np.log(np.exp(scores).sum(1, keepdims=True))
    by_hand = [log_p[0, 0], log_p[1, 1], log_p[2, 2:].mean(), log_p[3, 2:].mean()]
    found = contrast.cross_entropy(jnp.asarray(scores), jnp.asarray(same))
    assert found == pytest.approx(-np.mean(by_hand), rel=1e-5)


def test_training_finds_the_captions(stage, batch, trained):
    params, losses = trained
    # The least possible: the two equal captions halve the probability of each.
    assert losses[-1] < 0.5 * losses[0] and losses[-1] > 0.5 * np.log(2) - 1e-3
    _, metrics = jax.jit(stage.loss)(params, batch, jax.random.key(0))
    assert metrics["accuracy"] == 1
    swapped = {**batch, "video": batch["video"][jnp.array([1, 2, 0, 3])]}
    assert jax.jit(stage.loss)(params, swapped, jax.random.key(0))[1]["accuracy"] < 1


def test_what_an_image_shows_and_where_reaches_its_vector(batch, trained):
    network = ConvolutionalEncoder(SIZES)
    images = batch["video"][:1, 0].astype(jnp.float32) / 127.5 - 1
    apply = jax.jit(lambda x: network.apply({"params": trained[0]["vision"]}, x).pooled)
    own, moved = apply(images), apply(images[:, ::-1])
    assert np.abs(own - moved).max() > 1e-2 * np.abs(own).max()
    length = np.linalg.norm(normalised(own), axis=-1)
    np.testing.assert_allclose(length, np.sqrt(SIZES.projection), rtol=1e-5)
    assert not np.any(normalised(jnp.zeros((1, 3))))
    with pytest.raises(ValueError, match=r"images have shape .*\(8, 8, 3\)"):
        network.apply({"params": trained[0]["vision"]}, jnp.zeros((1, 4, 4, 3)))


def test_a_folder_is_read_as_written_and_gives_the_image_encoder(
    stage, batch, trained, tmp_path, monkeypatch
):
    monkeypatch.setattr(fetch, "CACHE", tmp_path / "cache")
    params = jax.tree.map(np.asarray, trained[0])
    parts = systems.write_published(tmp_path / "pair", make_config(), params, "float32")
    assert parts == ["the image-text pair"]
    read = weights.read_folder(tmp_path / "pair")
    assert read.network.config == SIZES
    wanted, found = (traverse_util.flatten_dict(p, sep="/") for p in (params, read.params))
    assert wanted.keys() == found.keys()
    for name, leaf in wanted.items():
        np.testing.assert_array_equal(found[name], leaf, err_msg=name)
    encoder = image_embedding.make_image_encoder(str(tmp_path / "pair"))
    part = image_embedding.read_image_encoder(str(tmp_path / "pair"))
    frozen = {IMAGE_ENCODER: jax.device_put(part.params)}
    assert encoder.width == SIZES.projection
    images = batch["video"][:, 0].astype(jnp.float32) / 127.5 - 1
    pooled = ConvolutionalEncoder(SIZES).apply({"params": trained[0]["vision"]}, images).pooled
    np.testing.assert_allclose(encoder(images, frozen), pooled, atol=1e-5)
    named = image_embedding.abstract_image_encoder(str(tmp_path / "pair")).named
    shapes, read = nn.meta.unbox(named), frozen[IMAGE_ENCODER]
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, read)


def test_bad_folders_and_configurations_are_named(tmp_path, stage):
    path = tmp_path / "config.json"
    for values, message in (
        ({"_class_name": "CLIPModel"}, "_class_name = 'CLIPModel': allowed"),
        ({"_class_name": weights.CLASS, "depth": 3}, "depth: allowed are image_size"),
        ({"_class_name": weights.CLASS, "widths": [4, 0]}, "widths = .*must be positive"),
        ({"_class_name": weights.CLASS, "image_size": 20}, "multiple of 16"),
    ):
        path.write_text(json.dumps(values))
        with pytest.raises(ValueError, match=message):
            weights.read_config(tmp_path)
    config = make_config()
    for section, field, value, message in (
        ("data", "num_frames", 4, "data.num_frames = 4"),
        ("data", "image_size", 16, "must be 8 x 8"),
        ("text", "encoder", "none", "text.encoder = 'none'"),
        ("model", "dtype", "int8", "model.dtype = 'int8'"),
    ):
        changed = config.copy_and_resolve_references()
        changed[section][field] = value
        with pytest.raises(ValueError, match=message):
            systems.build(changed)
    with pytest.raises(ValueError, match="image-text pair, which makes no samples"):
        pretrained.Model(stage=stage, params={}, config=config).sampler()
