"""Image embeddings as a condition and as z, and key frames as a condition."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.process import Process
from vdm_jax.stage.conditions.embedding import ImageEmbedding
from vdm_jax.stage.conditions.video import KeyFrames
from vdm_jax.stage.embedding_space import EmbeddingSpace, EmbeddingStage
from vdm_jax.stage.image_encoder import IMAGE_ENCODER, ImageEncoder, normalised
from vdm_jax.stage.protocols import Encoding, Example
from vdm_jax.stage.space import PixelSpace
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View

SHAPE, KEY = (3, 2, 2, 3), jax.random.key(0)
FROZEN = {IMAGE_ENCODER: {"gain": jnp.array([1.0, 2.0, 4.0])}}


@dataclasses.dataclass(frozen=True)
class Means:
    """An image encoder that returns the mean colour times its parameter."""

    config = types.SimpleNamespace(projection=3)

    def apply(self, variables, images):
        pooled = images.mean((1, 2)) * variables["params"]["gain"]
        return types.SimpleNamespace(pooled=pooled)


ENCODER = ImageEncoder(network=Means(), prepare=lambda images: images)


def make_clip(seed=0, count=2, frames=3):
    return jax.random.normal(jax.random.key(seed), (count, frames, 2, 2, 3))


def embedded(image):
    """By hand, of images (n, h, w, c)."""
    pooled = np.asarray(image).mean((1, 2)) * np.array([1.0, 2.0, 4.0])
    return pooled / np.linalg.norm(pooled, axis=-1, keepdims=True) * np.sqrt(3)


def make_example(images=None):
    encode = Encoding(PixelSpace(data_shape=SHAPE), FROZEN)
    return Example({}, make_clip(), images, jnp.ones(2), encode)


@pytest.mark.parametrize("frame,at", [("first", 0), ("middle", 1)])
def test_a_frame_of_the_clip_and_each_image_are_embedded(frame, at):
    condition = ImageEmbedding(encoder=ENCODER, drop=0.0, frame=frame)
    images = make_clip(seed=1, frames=4)
    found = condition.example(make_example(images), KEY)
    assert {k: v.shape for k, v in found.items()} == {
        k: v.shape for k, v in condition.cond_shapes(2, 4).items()
    }
    wanted = embedded(make_clip()[:, at])
    np.testing.assert_allclose(found["image_embedding"][:, 0], wanted, rtol=1e-5)
    wanted = embedded(images[:, 3])
    np.testing.assert_allclose(found["image_image_embedding"][:, 3, 0], wanted, rtol=1e-5)


def test_a_random_frame_is_any_of_the_clip():
    condition = ImageEmbedding(encoder=ENCODER, drop=0.0, frame="random")
    choices, seen = [embedded(make_clip()[:, at])[0] for at in range(3)], set()
    for seed in range(24):
        found = condition.example(make_example(), jax.random.key(seed))["image_embedding"][0, 0]
        seen.add(int(np.argmin([np.abs(found - one).max() for one in choices])))
    assert seen == {0, 1, 2}


def test_dropped_embeddings_are_the_null():
    condition = ImageEmbedding(encoder=ENCODER, drop=1.0)
    found = condition.example(make_example(make_clip(seed=1)), KEY)
    assert not any(np.any(value) for value in found.values())
    full = ImageEmbedding(encoder=ENCODER, drop=0.0).example(make_example(), KEY)
    assert np.any(full["image_embedding"])
    assert not np.any(condition.null(full)["image_embedding"])


def test_sampling_takes_embeddings_images_or_the_frames_that_are_known():
    encode = Encoding(PixelSpace(data_shape=SHAPE), FROZEN)
    condition = ImageEmbedding(encoder=ENCODER)
    given = np.array([[0.0, 3.0, 4.0]], np.float32)[:, None, None, None]
    cond = condition.encode(given, 1)
    found = condition.begin(jax.tree.map(jnp.asarray, cond), 1, KEY, {}, encode)
    wanted = np.array([0.0, 0.6, 0.8]) * np.sqrt(3)
    np.testing.assert_allclose(found["image_embedding"][0, 0], wanted, rtol=1e-5)
    image = np.random.default_rng(0).integers(0, 256, (1, 2, 2, 3), np.uint8)
    cond = jax.tree.map(jnp.asarray, condition.encode(image, 1))
    found = condition.begin(cond, 1, KEY, {}, encode)
    wanted = embedded(image / 127.5 - 1)
    np.testing.assert_allclose(found["image_embedding"][:, 0], wanted, rtol=1e-4)
    # A stage with known frames takes the first of them, or the null.
    condition = ImageEmbedding(encoder=ENCODER, video="masked_video")
    assert condition.encode(None, 1) == {} and not condition.of_stage_before
    frames = {"masked_video": jnp.asarray(np.stack([image, 255 - image], axis=1))}
    found = condition.begin(frames, 1, KEY, {}, encode)["image_embedding"]
    np.testing.assert_allclose(found[:, 0], wanted, rtol=1e-4)
    assert not np.any(condition.begin({}, 1, KEY, {}, encode)["image_embedding"])


def test_key_frames_lie_where_they_belong():
    condition = KeyFrames(shape=(7, 2, 2, 3), kinds=("key_frames",), given=3, skip=3)
    encode = Encoding(PixelSpace(data_shape=(7, 2, 2, 3)), {})
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 2, 2, 3), np.uint8)
    cond = jax.tree.map(jnp.asarray, condition.encode(frames, 2))
    found = condition.begin(cond, 2, KEY, {}, encode)
    assert {k: v.shape for k, v in found.items()} == {
        k: v.shape for k, v in condition.cond_shapes(2, 0).items()
    }
    np.testing.assert_allclose(found["masked_video"][:, ::3], frames / 127.5 - 1, atol=1e-6)
    known = np.isin(np.arange(7), (0, 3, 6))
    for entry in ("mask", "masked_video"):
        assert not np.any(found[entry][:, ~known])
    assert np.all(found["mask"][:, known] == 1)
    assert condition.begin({}, 2, KEY, {}, encode) == {}
    with pytest.raises(ValueError, match="3 with 4 frames from one to the next take 9 frames"):
        dataclasses.replace(condition, skip=4)


def test_a_prior_samples_embeddings_as_they_are():
    space = EmbeddingSpace(data_shape=(1, 2, 2, 3), encoder=ENCODER)
    clip = make_clip(frames=1)
    z = space.encode(clip, FROZEN)
    assert z.shape[1:] == space.z_shape == (1, 1, 1, 3)
    np.testing.assert_allclose(z[:, 0, 0, 0], embedded(clip[:, 0]), rtol=1e-5)
    np.testing.assert_allclose(normalised(z), z, rtol=1e-5)
    stage = EmbeddingStage(
        network=None, process=Process(), space=space, view=View(shape=(1, 2, 2, 3))
    )
    assert stage.sample_shape == jax.ShapeDtypeStruct((1, 1, 1, 3), np.float32)
    np.testing.assert_array_equal(stage.samples(space.decode(3 * z, FROZEN)), 3 * z)
    with pytest.raises(ValueError, match="samples embeddings, which cannot be seen"):
        space.preview(z, FROZEN)
    with pytest.raises(ValueError, match="lacks 'image_encoder'"):
        space.encode(clip, {})


def test_a_stage_takes_one_thing_of_the_stage_before():
    embedding = ImageEmbedding(encoder=ENCODER)
    frames = KeyFrames(shape=SHAPE, kinds=("key_frames",), given=2, skip=2)

    def make(*conditions):
        space = PixelSpace(data_shape=SHAPE)
        view = View(shape=SHAPE)
        return Stage(network=None, process=Process(), space=space, view=view, conditions=conditions)

    assert make().of_stage_before is None
    assert make(embedding).of_stage_before is embedding
    follows = dataclasses.replace(embedding, video=frames.name)
    assert make(follows, frames).of_stage_before is frames
    with pytest.raises(ValueError, match="image_embedding, masked_video: only one can be made"):
        make(embedding, frames).of_stage_before  # noqa: B018
