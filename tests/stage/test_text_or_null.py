"""Text whose null is a text: in training, in sampling, and as a negative prompt."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.diffusion.process import Process
from vdm_jax.models import layers
from vdm_jax.models.text.words import WordEncoder
from vdm_jax.stage import sampler as sampling
from vdm_jax.stage.conditions.prompt import NEGATIVE, TextOrNull
from vdm_jax.stage.space import PixelSpace
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View

SHAPE = (2, 4, 4, 3)
KEYS = ("text_embeddings", "token_mask")


class Encoder:
    """States that tell texts apart, all tokens seen, as CLIP's."""

    vocab_size, embedding_width, max_length, null_text = 0, 3, 2, "none"

    def encode(self, captions, *, strict=False):
        states = np.zeros((len(captions), 2, 3), np.float16)
        for row, caption in enumerate(captions):
            states[row] = len(caption) / 4 + np.arange(6).reshape(2, 3) / 8
        return {"text_embeddings": states, "token_mask": np.ones((len(captions), 2), bool)}

    def example(self):
        return self.encode([""])


class Network(nn.Module):
    """Adds what the text's states say, by a few parameters."""

    layout: layers.Layout = layers.ANYWHERE
    remat: str = "none"
    multiple = 1
    reach = None

    @nn.compact
    def __call__(self, z, logsnr, cond, *, num_images=0, train=False):
        init = layers.named(nn.initializers.ones, None, None)
        text = cond["text_embeddings"].astype(jnp.float32).mean(1)
        text = text @ self.param("kernel", init, (3, 3))
        if num_images:
            text = text + cond["image_text_embeddings"].astype(jnp.float32).mean((1, 2))
        return 0.1 * z + text[:, None, None, None]


def make_stage(drop=0.0):
    return Stage(
        network=Network(),
        process=Process(),
        space=PixelSpace(data_shape=SHAPE),
        view=View(shape=SHAPE),
        conditions=(TextOrNull(encoder=Encoder(), drop=drop),),
    )


STAGE = make_stage()


def training_batch(captions, images=0):
    n, encode = len(captions), Encoder().encode
    batch = {"video": np.zeros((n, *SHAPE), np.uint8), **encode(captions)}
    batch |= {f"null_{key}": leaf for key, leaf in encode(["none"] * n).items()}
    if images:
        batch["images"] = np.zeros((n, images, *SHAPE[1:]), np.uint8)
        encoded = encode([caption + "image" for caption in captions] * images)
        batch |= {f"image_{k}": v.reshape(n, images, *v.shape[1:]) for k, v in encoded.items()}
    return jax.tree.map(jnp.asarray, batch)


def assert_states(found, captions):
    for key, leaf in Encoder().encode(captions).items():
        assert found[key].dtype == leaf.dtype
        np.testing.assert_array_equal(found[key], leaf)


def shapes_of(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


@pytest.mark.parametrize("images", [0, 2])
def test_dropped_text_is_replaced_by_the_null(images):
    captions = ["a" * length for length in range(5, 45)]  # none as long as the null
    batch = training_batch(captions, images)
    assert shapes_of(batch) == shapes_of(dict(STAGE.abstract_batch(40, images)))
    for drop, dropped in ((0.0, [0]), (1.0, [40]), (0.5, range(8, 33))):
        stage = make_stage(drop)
        _, cond, _ = stage.example(batch, jax.random.key(0))
        assert cond.keys() == {*stage.cond_shapes(40, images), NEGATIVE}
        states = np.asarray(cond["text_embeddings"])
        null = np.asarray(batch["null_text_embeddings"])
        is_null = (states == null).all((1, 2))
        assert is_null.sum() in dropped
        np.testing.assert_array_equal(states[~is_null], batch["text_embeddings"][~is_null])
        if images:
            of_images = np.asarray(cond["image_text_embeddings"])
            kept = batch["image_text_embeddings"]
            expected = np.where(is_null[:, None, None, None], null[:, None], kept)
            np.testing.assert_array_equal(of_images, expected)
        nulled = stage.null(cond)
        assert_states({key: nulled[key] for key in KEYS}, ["none"] * 40)
        if images:
            assert (np.asarray(nulled["image_text_embeddings"]) == null[:, None]).all()


def test_prompts_bring_the_null_with_them():
    prompts = ["cat", "elephant"]
    for negatives, expected in ((None, ["none"] * 2), (["ugly", "dull"], ["ugly", "dull"])):
        cond = STAGE.encode(prompts, negatives=negatives)
        assert_states({key: cond[key] for key in KEYS}, prompts)
        assert shapes_of(cond) == shapes_of(STAGE.abstract_inputs(2))
        assert_states({key: STAGE.null(cond)[key] for key in KEYS}, expected)
    assert not any("keep" in key for key in cond)


def test_guidance_leads_away_from_the_null_or_the_negative_prompt():
    params = STAGE.init(jax.random.key(0))
    z, logsnr = jnp.zeros((1, *SHAPE)), jnp.zeros(1)

    def output(negative):
        options = {"steps": 2, "guidance": 3.0, "negative": negative}
        sampler = sampling.Sampler.from_config(STAGE, {}, **options)
        negatives = None if negative is None else [negative]
        cond = STAGE.encode(["cat"], negatives=negatives)
        denoiser, _ = sampler.denoiser_and_rule(params, None)
        return denoiser(z, logsnr, STAGE.begin(cond, 1, jax.random.key(0), {})).x

    assert jnp.array_equal(output(None), output("none"))
    assert jnp.abs(output(None) - output("something else")).max() > 0.1


def test_batches_without_the_null_are_refused():
    batch = training_batch(["a"])
    batch.pop("null_text_embeddings")
    with pytest.raises(ValueError, match="batch lacks null_text_embeddings"):
        STAGE.example(batch, jax.random.key(0))
    words = WordEncoder(["a"], max_length=2, vocabulary_size=1)
    with pytest.raises(ValueError, match="no text that stands for no text"):
        TextOrNull(encoder=words)
