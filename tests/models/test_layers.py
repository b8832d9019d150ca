import jax.numpy as jnp
import numpy as np

from vdm_jax.models import layers


def test_sinusoidal_embedding_spans_its_periods():
    e = layers.sinusoidal_embedding(jnp.arange(3.0), 4, max_period=100.0)
    np.testing.assert_allclose(
        e, [[np.sin(p), np.sin(p / 10), np.cos(p), np.cos(p / 10)] for p in range(3)], rtol=1e-5
    )
