"""Frozen text encoders serve as a stage's text encoder, and their embeddings as its condition."""

from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.text import test_minilm, test_t5
from tests.weights import test_clip_inputs
from vdm_jax.diffusion.process import Process
from vdm_jax.models import layers
from vdm_jax.models.blocks.settings import BlockSettings
from vdm_jax.models.condition import TextStates
from vdm_jax.models.text.words import TextEncoder, WordEncoder
from vdm_jax.models.unet import UNet
from vdm_jax.models.video_unet import VideoUNet
from vdm_jax.stage import frozen_text
from vdm_jax.stage.conditions.prompt import Text
from vdm_jax.stage.space import PixelSpace
from vdm_jax.stage.stage import Stage
from vdm_jax.stage.view import View
from vdm_jax.weights import clip_inputs
from vdm_jax.weights import minilm as minilm_weights
from vdm_jax.weights import t5 as t5_weights

CAPTIONS = ["a red ball rolls.", "", "a ball", "red " * 30]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("weights")
    return {
        "minilm": test_minilm.write_folder(root / "minilm"),
        "t5": test_t5.write_folder(root / "t5"),
        "clip": test_clip_inputs.write_text_folder(root / "clip"),
    }


def make(folders, name, own=False, **changes):
    text = {"encoder": name, "weights": str(folders[name]), "max_length": 10}
    return frozen_text.make_frozen_text_encoder(text | changes, own=own)


def test_any_encoder_may_have_a_null_text(folders):
    plain, nulled = make(folders, "minilm"), make(folders, "minilm", null_text="")
    assert (plain.null_text, nulled.null_text) == (None, "")
    assert make(folders, "minilm", null_text="") is nulled


READERS = {
    "minilm": minilm_weights.read_folder,
    "t5": t5_weights.read_folder,
    "clip": clip_inputs.read_text,
}


@pytest.mark.parametrize("name", READERS)
def test_captions_become_the_networks_states(folders, name):
    encoder = make(folders, name)
    assert isinstance(encoder, TextEncoder)
    width = 32 if name == "clip" else 12
    assert (encoder.vocab_size, encoder.embedding_width, encoder.max_length) == (0, width, 10)
    assert encoder.null_text == ("" if name == "clip" else None)
    encoded = encoder.encode(CAPTIONS)
    states, mask = encoded["text_embeddings"], encoded["token_mask"]
    assert states.shape == (4, 10, width) and mask.any(-1).all()
    assert states.dtype == (np.float32 if name == "clip" else np.float16)
    assert (states[~mask] == 0).all()

    network, params, tokenizer = READERS[name](folders[name])
    tokens, expected_mask = tokenizer.encode(CAPTIONS, 10)
    np.testing.assert_array_equal(mask, expected_mask)
    expected = jax.jit(network.apply)({"params": params}, jnp.asarray(tokens), jnp.asarray(mask))
    np.testing.assert_allclose(states[mask], expected[mask], atol=3e-3)
    # A caption's embedding does not depend on those beside it.
    alone = encoder.encode(CAPTIONS[2:3])
    np.testing.assert_allclose(alone["text_embeddings"][0], states[2], atol=3e-3)

    example = encoder.example()
    assert {k: (v.shape[1:], v.dtype) for k, v in example.items()} == {
        k: (v.shape[1:], v.dtype) for k, v in encoded.items()
    }
    with pytest.raises(ValueError, match="at most text.max_length = 10 are allowed"):
        encoder.encode(CAPTIONS, strict=True)
    assert encoder.encode([])["text_embeddings"].shape == (0, 10, width)


@pytest.mark.parametrize("name", ["minilm", "t5"])
def test_a_plan_is_made_of_the_parameters_that_are_read(folders, name):
    encoder = make(folders, name)
    abstract = jax.tree.map(
        lambda leaf: leaf.value.shape,
        encoder.abstract_params(),
        is_leaf=lambda leaf: isinstance(leaf, layers.Named),
    )
    read = {"minilm": minilm_weights, "t5": t5_weights}[name].read_folder(folders[name])[1]
    assert abstract == jax.tree.map(jnp.shape, read)


def test_identity_says_what_embeddings_depend_on(folders, tmp_path):
    identity = make(folders, "t5").identity
    assert make(folders, "t5", identity=identity[:16]).identity == identity
    other_weights = test_t5.write_folder(tmp_path / "t5", test_t5.random_tensors(seed=1))
    others = [
        make(folders, "t5", max_length=9),
        make(folders, "t5", dtype="bfloat16"),
        make({"t5": other_weights}, "t5"),
        make(folders, "minilm"),
    ]
    assert len({identity, *(other.identity for other in others)}) == 5
    refused = make({"t5": other_weights}, "t5", identity=identity)
    with pytest.raises(ValueError, match="the model was trained with another one"):
        refused.encode(["a"])


def test_weights_are_read_only_to_encode(folders):
    encoder = make(folders, "t5", encoder="t5_xxl", weights="", max_length=64)
    assert encoder.embedding_width == 4096
    assert encoder.example()["text_embeddings"].shape == (1, 64, 4096)
    with pytest.raises(ValueError, match="'t5_xxl': text.weights, or the environment .* must name"):
        encoder.encode(["a"])
    for size in ("t5_small", "clip_l"):
        with pytest.raises(ValueError, match=f"'{size}'.*has another network"):
            make(folders, size.split("_")[0], encoder=size).encode(["a"])


def test_clip_fills_every_token(folders):
    """As in Stable Diffusion, whose network sees the padding too."""
    encoder = make(folders, "clip", encoder="clip_h", weights="", max_length=77)
    assert encoder.embedding_width == 1024
    assert encoder.example()["text_embeddings"].shape == (1, 77, 1024)
    encoded = make(folders, "clip").encode(["a", ""])
    assert encoded["token_mask"].all() and (encoded["text_embeddings"] != 0).any(-1).all()


def test_a_variable_names_the_folder(folders, monkeypatch):
    for name, variable in (("t5", "VDM_JAX_T5"), ("clip", "VDM_JAX_CLIP")):
        with pytest.raises(ValueError, match=f"'{name}': text.weights or {variable} must name"):
            make(folders, name, weights="")
        expected = make(folders, name).identity
        monkeypatch.setenv(variable, str(folders[name]))
        assert make(folders, name, weights="/elsewhere").identity == expected


def test_wrong_settings_are_named(folders, tmp_path):
    for change, message in (
        (
            {"encoder": "bert"},
            "text.encoder = 'bert': allowed are minilm, t5, umt5, clip",
        ),
        ({"dtype": "float16"}, "text.dtype = 'float16': allowed are float32, bfloat16"),
        ({"max_length": 2}, "text.max_length = 2: t5 needs at least 3"),
    ):
        with pytest.raises(ValueError, match=message):
            make(folders, "t5", **change)
    for name, longest in (("minilm", 16), ("clip", 12)):
        message = f"text.max_length = {longest + 1}: {name} takes at most {longest}"
        with pytest.raises(ValueError, match=message):
            make(folders, name, max_length=longest + 1)
    tensors = test_t5.random_tensors()
    tensors["encoder.final_layer_norm.weight"] = np.full(12, 1e6, np.float32)
    assert make(folders, "t5") is not make(folders, "t5", max_length=9)
    one = make(folders, "t5")
    assert make(folders, "t5") is one  # the stages of a cascade share their encoder
    loud = make({"t5": test_t5.write_folder(tmp_path / "loud", tensors)}, "t5")
    with pytest.raises(FloatingPointError, match="not finite in float16, of captions such as 'a'"):
        loud.encode(["a"])


NETWORK = VideoUNet(
    unet=UNet(channels=4, channel_mult=(1,), num_res_blocks=1),
    settings=BlockSettings(head_dim=4, norm_groups=2),
    conditions=(TextStates(width=12),),
    attention_levels=(0,),
)


@pytest.fixture(scope="module")
def stage(folders):
    return Stage(
        network=NETWORK,
        process=Process(),
        space=PixelSpace(data_shape=(2, 4, 4, 3)),
        view=View(shape=(2, 4, 4, 3)),
        conditions=(Text(encoder=make(folders, "minilm"), drop=0.0),),
    )


def batch_of(stage, captions, images):
    draws = np.random.default_rng(0)
    n = len(captions)
    batch = {"video": draws.integers(256, size=(n, 2, 4, 4, 3), dtype=np.uint8)}
    batch |= stage.text_encoder.encode(captions)
    if images:
        batch["images"] = draws.integers(256, size=(n, images, 4, 4, 3), dtype=np.uint8)
        encoded = stage.text_encoder.encode(captions[::-1] * images)
        batch |= {
            f"image_{key}": leaf.reshape(n, images, *leaf.shape[1:])
            for key, leaf in encoded.items()
        }
    return batch


def test_a_stage_learns_from_embeddings(stage):
    shapes = nn.meta.unbox(stage.abstract_params())
    assert shapes["condition"]["text_states"]["kernel"].shape == (12, 16)
    assert not {"words", "word_positions"} & shapes["condition"].keys()
    draws = np.random.default_rng(0)
    params = jax.tree.map(lambda a: jnp.asarray(draws.normal(size=a.shape) / 2, a.dtype), shapes)
    loss = jax.jit(lambda stage, *args: stage.loss(*args)[0], static_argnums=0)
    batch = batch_of(stage, ["a red ball", "a ball"], images=1)
    abstract = stage.abstract_batch(2, 1)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        k: (v.shape, v.dtype) for k, v in abstract.items()
    }
    key = jax.random.key(1)
    first = loss(stage, params, batch, key)
    for name in ("text_embeddings", "image_text_embeddings"):
        assert loss(stage, params, batch | {name: batch[name] * np.float16(0.5)}, key) != first
    prompts = stage.encode(["a red ball"])
    np.testing.assert_array_equal(prompts["text_embeddings"][0], batch["text_embeddings"][0])


def test_words_have_no_embeddings():
    encoder = WordEncoder(["a"], max_length=3, vocabulary_size=4)
    assert isinstance(encoder, TextEncoder) and encoder.embedding_width == 0
    assert encoder.example().keys() == encoder.encode(["a"]).keys()


def test_an_encoder_is_placed_before_it_is_used(folders):
    encoder = make(folders, "t5", own=True)
    plan = SimpleNamespace(
        params=jax.devices()[0], batch=jax.devices()[0], batch_shards=encoder.batch_size - 1
    )
    encoder.place(plan)
    assert encoder.batch_size % plan.batch_shards == 0
    encoded = encoder.encode(CAPTIONS[:1])
    expected = make(folders, "t5").encode(CAPTIONS[:1])
    np.testing.assert_allclose(encoded["text_embeddings"], expected["text_embeddings"], atol=3e-3)
    with pytest.raises(ValueError, match="its weights lie somewhere already"):
        encoder.place(plan)
