"""umT5's encoder and tokenisers against what the published ones computed
(`tests/weights/record_wan.py`)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from flax import traverse_util

from tests.weights import drawn_files
from tests.weights.drawn_files import assert_close
from vdm_jax.models.text import t5 as networks
from vdm_jax.models.text import token_attention
from vdm_jax.models.text.subwords import Unigram, plain
from vdm_jax.stage.frozen_text import make_frozen_text_encoder
from vdm_jax.weights import fetch, published, t5


def tokenizer_json():
    """A unigram model of single letters, with T5's special pieces."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(one, -2.0) for one in "▁abcdefghijklmnopqrstuvwxyz"]
    model = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    model.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    model.post_processor = tokenizers.processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    return model.to_str()


@pytest.fixture(scope="module")
def golden():
    return drawn_files.read("umt5")


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    folder = tmp_path_factory.mktemp("umt5")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "CACHE", folder / "cache")
        golden.write(folder / "text_encoder", published.TRANSFORMERS)
        (folder / "tokenizer").mkdir()
        (folder / "tokenizer" / "tokenizer.json").write_text(tokenizer_json())
        yield folder


@pytest.fixture(scope="module")
def loaded(folder):
    return t5.read_folder(folder)


def test_states_and_gradients_are_those_of_the_published_encoder(loaded, golden):
    network, params, _ = loaded
    assert network.config.bias_in_layers
    tokens = jnp.asarray(golden.values["tokens"], jnp.int32)
    mask = jnp.asarray(golden.values["mask"] > 0)

    @jax.jit
    def run(params):
        def total(params):
            states = network.apply({"params": params}, tokens, mask)
            return jnp.mean((states * mask[..., None]) ** 2), states

        return jax.grad(total, has_aux=True)(params)

    gradient, states = run(params)
    seen = golden.values["mask"] > 0
    assert_close(np.asarray(states)[seen], golden.values["states"][seen])
    bias_gradient = gradient["layers"]["position_bias"]["embedding"]
    assert bias_gradient.shape == (2, 8, 2)
    assert_close(bias_gradient[1], golden.values["gradient/bias"], 1e-3)


def test_the_published_size():
    network = networks.T5Encoder(networks.UMT5_SIZES["xxl"])
    leaves = traverse_util.flatten_dict(token_attention.shapes(network), sep="/")
    assert sum(int(np.prod(leaf.shape)) for leaf in leaves.values()) == 5_680_910_336


def test_prompts_become_the_states_of_their_tokens(folder, loaded):
    encoder = make_frozen_text_encoder(
        {"encoder": "umt5", "weights": str(folder), "max_length": 12}, own=True
    )
    assert encoder.null_text == ""
    found = encoder.encode(["a  cat &amp; ", ""])
    mask = found["token_mask"]
    assert mask.sum(1).tolist() == [9, 1]  # ▁ a ▁ c a t ▁ & </s>
    states = found["text_embeddings"]
    assert states.dtype == np.float32 and not states[~mask].any()
    tokens, whole = loaded.tokenizer.encode(["a cat &"], 12)
    np.testing.assert_array_equal(whole[0], mask[0])
    inputs = jnp.asarray(tokens), jnp.asarray(whole)
    wanted = jax.jit(loaded.network.apply)({"params": loaded.params}, *inputs)
    assert_close(states[0][mask[0]], np.asarray(wanted[0])[mask[0]], 1e-5)


def test_text_is_cleaned():
    assert plain(" a\n\t b &amp;lt; c ") == "a b < c"


def test_a_tokeniser_without_the_special_pieces_is_refused():
    assert Unigram(tokenizer_json()).size == 30
    with pytest.raises(ValueError, match=r"an empty text is \[\] and <pad> 0; T5 has \[1\] and 0"):
        model = tokenizers.Tokenizer.from_str(tokenizer_json())
        model.post_processor = tokenizers.processors.TemplateProcessing(single="$A")
        Unigram(model.to_str())
    with pytest.raises(ValueError, match="cannot be read"):
        Unigram("{}")


def test_a_folder_without_tokeniser_is_refused(golden, tmp_path):
    golden.write(tmp_path, published.TRANSFORMERS)
    with pytest.raises(FileNotFoundError, match=r"none of spiece\.model, tokenizer\.json is there"):
        t5.read_folder(tmp_path)
