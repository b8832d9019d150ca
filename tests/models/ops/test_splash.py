"""The kernel of TPUs, interpreted, against plain attention."""

import jax
import jax.numpy as jnp
import numpy as np

from vdm_jax.models.ops import attention, splash


def test_the_kernel_computes_attention_of_segments():
    q, k, v = jax.random.normal(jax.random.key(0), (3, 1, 150, 1, 128))
    segments = jnp.repeat(jnp.array([[0, 1]]), jnp.array([60, 90]), axis=1, total_repeat_length=150)

    @jax.jit
    def both(q):
        kernel = splash.attend(q, k, v, segments, block=128, interpret=True)
        return kernel, attention.attend_tokens(q, k, v, (segments, segments))

    found, wanted = both(q)
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    assert np.abs(wanted - attention.attend_tokens(q, k, v)).max() > 0.1


def test_only_long_rows_of_whole_lanes_are_computed_by_it():
    assert splash.fits((1, 600, 2, 128))
    assert not splash.fits((1, 600, 2, 64)) and not splash.fits((1, 100, 2, 128))
    rows = [jax.ShapeDtypeStruct((1, 600, 2, 128), jnp.float32)] * 3
    traced = str(jax.make_jaxpr(attention.attend_rows)(*rows))
    assert "platform_index" in traced and "pallas_call" in traced
