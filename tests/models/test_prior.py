"""The prior's transformer: what reaches its prediction, and what may not."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.models import prior
from vdm_jax.models.blocks.encoder import Transformer
from vdm_jax.models.prior import PriorTransformer, sizes_from
from vdm_jax.models.text.token_attention import attend

NETWORK = PriorTransformer(
    sizes=Transformer(width=8, hidden=16, num_layers=2, heads=2), text_width=6, tokens=4
)


def make_inputs():
    rng = np.random.default_rng(0)
    cond = {
        "text_embeddings": rng.normal(size=(2, 4, 6)).astype(np.float32),
        "token_mask": np.array([[1, 1, 1, 0], [1, 1, 0, 0]], bool),
        "keep_text": np.array([True, True]),
    }
    return jnp.asarray(rng.normal(size=(2, 1, 1, 1, 5)), jnp.float32), jnp.array([0.5, -1.0]), cond


@functools.cache
def compiled():
    """The network with parameters of which none is zero."""
    rng = np.random.default_rng(1)
    shapes = nn.meta.unbox(jax.eval_shape(NETWORK.init, jax.random.key(0), *make_inputs()))
    params = jax.tree.map(
        lambda a: jnp.asarray(rng.normal(size=a.shape) / 2, jnp.float32), shapes["params"]
    )
    return jax.jit(lambda z, logsnr, cond: NETWORK.apply({"params": params}, z, logsnr, cond))


def change(**changed):
    """The largest change of each example's prediction."""
    z, logsnr, cond = make_inputs()
    before = compiled()(z, logsnr, cond)
    z, logsnr = changed.pop("z", z), changed.pop("logsnr", logsnr)
    return np.abs(compiled()(z, logsnr, {**cond, **changed}) - before).max((1, 2, 3, 4))


def test_every_input_reaches_the_prediction():
    z, logsnr, cond = make_inputs()
    assert compiled()(z, logsnr, cond).shape == z.shape
    states, mask = cond["text_embeddings"].copy(), cond["token_mask"].copy()
    assert change(z=z + 1).min() > 1e-3 and change(logsnr=logsnr + 1).min() > 1e-3
    for token in range(2):
        other = states.copy()
        other[:, token, 0] += 1
        assert change(text_embeddings=other).min() > 1e-4
    mask[:, 1] = False
    assert change(token_mask=mask).min() > 1e-4
    # Tokens outside of the mask, and with the null in its place the whole text, do not.
    other = states.copy()
    other[:, 3] += 5
    assert change(text_embeddings=other).max() < 1e-5
    dropped = np.array([True, False])
    first, second = change(keep_text=dropped)
    assert first < 1e-6 < 1e-3 < second
    null = {**cond, "keep_text": np.array([False, False])}
    both = compiled()(z, logsnr, null)
    np.testing.assert_allclose(
        compiled()(z, logsnr, {**null, "text_embeddings": states + 1}), both, atol=1e-5
    )


def test_no_token_depends_on_a_later_one(monkeypatch):
    """Attention with the bias equals that over the tokens up to each; and the network uses it."""
    rng = np.random.default_rng(3)
    q, k, v = (jnp.asarray(rng.normal(size=(1, 4, 1, 3)), jnp.float32) for _ in range(3))
    found = attend(q, k, v, None, prior.causal_bias(4))
    for at in range(4):
        alone = attend(q[:, : at + 1], k[:, : at + 1], v[:, : at + 1])[:, -1]
        np.testing.assert_allclose(found[:, at], alone, atol=1e-6)
    inputs, before = make_inputs(), compiled()(*make_inputs())
    monkeypatch.setattr(prior, "causal_bias", lambda length: jnp.zeros((1, length, length)))
    compiled.cache_clear()
    after = compiled()(*inputs)
    compiled.cache_clear()
    assert np.abs(after - before).max() > 1e-3


def test_mistakes_are_named():
    z, logsnr, cond = make_inputs()
    init = functools.partial(jax.eval_shape, NETWORK.init, jax.random.key(0), z, logsnr)
    with pytest.raises(ValueError, match=r"\(2, 4, 5\) must be \(batch, 4, 6\)"):
        init({**cond, "text_embeddings": np.zeros((2, 4, 5), np.float32)})
    with pytest.raises(ValueError, match="data.image_frames = 1: a prior takes no images"):
        jax.eval_shape(
            functools.partial(NETWORK.init, num_images=1), jax.random.key(0), z, logsnr, cond
        )
    with pytest.raises(ValueError, match="model.prior: depth: allowed are width"):
        sizes_from({"depth": 2})
    with pytest.raises(ValueError, match="model.prior.heads = 0: must be positive"):
        sizes_from({"width": 8, "hidden": 8, "num_layers": 1, "heads": 0})
