import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors

from vdm_jax.models import layers


def test_sinusoidal_embedding_spans_its_periods():
    e = layers.sinusoidal_embedding(jnp.arange(3.0), 4, max_period=100.0)
    np.testing.assert_allclose(
        e, [[np.sin(p), np.sin(p / 10), np.cos(p), np.cos(p / 10)] for p in range(3)], rtol=1e-5
    )


def test_equal_networks_are_traced_once_for_their_shapes_and_once_for_their_parameters():
    traces = []

    class Counted(nn.Module):
        features: int = 2

        @nn.compact
        def __call__(self, x):
            traces.append(self.features)
            return layers.dense(self.features, dtype=jnp.float32, name="map")(x)

    x, key = jnp.zeros((1, 3)), jax.random.key(0)
    boxed = [layers.abstract_params(Counted(), x) for _ in range(2)]
    assert boxed[0]["map"]["kernel"].names == (layers.IN, layers.OUT)
    assert boxed[0] == boxed[1] and traces == [2]
    params = [nn.meta.unbox(layers.init(Counted(), key, x)) for _ in range(2)]
    assert traces == [2, 2]
    kernels = [one["map"]["kernel"] for one in (*params, Counted().init(key, x)["params"])]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    np.testing.assert_allclose(kernels[0], kernels[2].value, rtol=1e-6)
    assert boxed[0]["map"]["kernel"].value.shape == kernels[0].shape
    layers.abstract_params(Counted(features=4), x)
    assert traces[-1] == 4


def test_parameters_that_exist_are_taken_and_their_shapes_compared():
    drawn = []

    def zeros(key, shape, dtype):
        drawn.append(shape)
        return jnp.zeros(shape, dtype)

    module, x = layers.Dense(3, kernel_init=zeros), jnp.ones((1, 2))
    params = module.init(jax.random.key(0), x)
    assert drawn == [(2, 3)]
    np.testing.assert_array_equal(module.apply(params, x), jnp.zeros((1, 3)))
    assert len(drawn) == 1
    with pytest.raises(errors.ScopeParamShapeError, match=r"kernel.*\(5, 3\).*\(2, 3\)"):
        module.apply(params, jnp.ones((1, 5)))
