"""The start of the layer that reads a frozen text encoder's states."""

import jax
import numpy as np
import pytest

from vdm_jax.parallel import sharding
from vdm_jax.training import state, whitening


def states(width=12, rank=6, count=400):
    """Tokens whose directions vary by factors of three, about a mean that is not zero."""
    rng = np.random.default_rng(0)
    latent = rng.normal(size=(count, rank)) * 3.0 ** -np.arange(rank)
    directions = np.linalg.qr(rng.normal(size=(width, width)))[0][:rank]
    return (latent @ directions + rng.normal(size=width)).astype(np.float32)


def test_what_is_kept_is_white_and_the_largest():
    tokens = states()
    mean, projection = whitening.statistics(tokens, 4)
    white = (tokens - mean) @ projection
    np.testing.assert_allclose(white.mean(0), 0, atol=1e-4)
    np.testing.assert_allclose(np.cov(white.T, bias=True), np.eye(4), atol=1e-3)
    # Of all projections to four numbers the one that leaves the least of the variance.
    centred = tokens - mean
    explained = white @ np.linalg.lstsq(white, centred, rcond=None)[0]
    least = (np.linalg.svd(centred, compute_uv=False)[4:] ** 2).sum()
    np.testing.assert_allclose(((centred - explained) ** 2).sum(), least, rtol=1e-2)


@pytest.mark.parametrize("count", [7, -1])
def test_more_than_varies_is_refused(count):
    with pytest.raises(ValueError, match=f"text.whiten = {count}: must be from 1 to 6"):
        whitening.statistics(states(), count)


class Stage:
    """As much of a stage as a start needs."""

    def init(self, key):
        first, second = jax.random.split(key)
        layer = {"kernel": jax.random.normal(first, (12, 256)) / 12**0.5}
        layer["bias"] = jax.numpy.zeros(256)
        return {"condition": {"text_states": layer}, "rest": jax.random.normal(second, (3,))}


def test_tokens_begin_as_different_as_their_directions_allow_and_nothing_else_changes():
    stage, tokens = Stage(), states()
    mesh = jax.make_mesh((1,), ("data",))
    whole = jax.sharding.PartitionSpec()
    place = sharding.ParameterPlan(spec=whole, gathered=whole, dtype=np.float32)
    shapes = jax.eval_shape(stage.init, jax.random.key(0))
    plan = sharding.Plan(mesh=mesh, parameters=jax.tree.map(lambda _: place, shapes))
    params = whitening.initial_params(stage, plan, 5, tokens, 4)
    plain = state.create_params(stage, 5, plan)
    np.testing.assert_array_equal(params["rest"], plain["rest"])
    layer = params["condition"]["text_states"]
    seen = tokens @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(seen.mean(0), 0, atol=1e-3)
    # Four equal directions, each of about a quarter of the variance of a whitened token.
    variances = np.linalg.svd(seen, compute_uv=False)[:6] ** 2 / len(tokens) / 256
    np.testing.assert_allclose(variances[:4], 1 / 4, rtol=0.4)
    assert variances[4] < 1e-6
