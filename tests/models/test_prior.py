"""The prior's transformer: what reaches its prediction, and what may not."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.models.blocks.encoder import Transformer
from vdm_jax.models.prior import PriorTransformer, sizes_from

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


def test_no_token_depends_on_a_later_one():
    """Of the states before the last, by the attention's own mask: the query sees all."""
    inputs = make_inputs()

    def states(cond):
        shapes = nn.meta.unbox(jax.eval_shape(NETWORK.init, jax.random.key(0), *inputs))["params"]
        rng = np.random.default_rng(2)
        params = jax.tree.map(lambda a: jnp.asarray(rng.normal(size=a.shape), jnp.float32), shapes)
        _, found = NETWORK.apply(
            {"params": params},
            *inputs[:2],
            cond,
            mutable="intermediates",
            capture_intermediates=lambda module, name: module.name == "layers",
        )
        ((carry, _),) = found["intermediates"]["layers"]["__call__"]
        return carry

    other = {**inputs[2], "text_embeddings": inputs[2]["text_embeddings"].copy()}
    other["text_embeddings"][:, 1] += 1
    moved = np.abs(states(other) - states(inputs[2])).max((0, 2))
    assert moved[0] < 1e-5 and moved[[1, 4, 5, 6, 7]].min() > 1e-4


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
