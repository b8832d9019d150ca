"""Text as a condition: what reaches the tokens and the vectors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.models.condition import ConditionEmbedding, TextStates


@pytest.mark.parametrize("text_kernel", [0, 3])
def test_padding_and_dropped_text_have_no_effect(text_kernel):
    embedding = ConditionEmbedding(8, (TextStates(width=3, kernel=text_kernel),))
    draws = np.random.default_rng(0)
    cond = {
        "text_embeddings": jnp.asarray(draws.normal(size=(2, 4, 3)), jnp.float16),
        "token_mask": jnp.arange(4) < jnp.array([[2], [4]]),
    }
    logsnr = jnp.zeros(2)
    params = jax.jit(lambda key: embedding.init(key, logsnr, cond, 2))(jax.random.key(0))
    run = jax.jit(lambda cond: embedding.apply(params, logsnr, cond, 2))
    vectors, tokens, mask = run(cond)
    assert tokens.shape == (2, 1, 4, 8) and mask.shape == (2, 1, 4)
    louder = cond["text_embeddings"].at[0, 2:].set(9)
    np.testing.assert_array_equal(run(cond | {"text_embeddings": louder})[0], vectors)
    louder = cond["text_embeddings"].at[0, 1].set(9)
    assert not np.array_equal(run(cond | {"text_embeddings": louder})[0], vectors)
    # A token reaches itself and, through the convolution, the token beside it.
    moved = np.abs(run(cond | {"text_embeddings": cond["text_embeddings"].at[1, 0].set(9)})[1])
    changed = (moved[1, 0] != np.abs(tokens[1, 0])).any(-1)
    np.testing.assert_array_equal(changed, [True, text_kernel > 0, False, False])
    # A condition that is dropped has no effect either.
    keep = jnp.array([False, True])
    null = run(cond | {"keep_text": keep})
    other = run(cond | {"keep_text": keep, "text_embeddings": cond["text_embeddings"] * 0.5})
    np.testing.assert_array_equal(null[0][:2], other[0][:2])  # two frames of the first clip
    assert not np.array_equal(null[0][2:], other[0][2:])

    with pytest.raises(ValueError, match=r"cond lacks text_embeddings; it has: token_mask"):
        run({"token_mask": cond["token_mask"]})
    with pytest.raises(ValueError, match="must have text_width = 3 last"):
        run(cond | {"text_embeddings": jnp.zeros((2, 4, 5))})
