"""Whether two functions have the same values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np


def gradients(function, *arguments):
    """Gradients of a weighted sum of the outputs with respect to every argument."""

    def total(*arguments):
        output = function(*arguments)
        return jnp.vdot(
            output, jnp.cos(jnp.arange(output.size, dtype=jnp.float32)).reshape(output.shape)
        )

    return jax.jit(jax.grad(total, tuple(range(len(arguments)))))(*arguments)


def normal(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes]


def check_same(ours, theirs, *arguments):
    """Outputs and gradients are equal but for the order of float32 sums."""
    np.testing.assert_allclose(ours(*arguments), theirs(*arguments), rtol=1e-4, atol=1e-5)
    for a, b in zip(gradients(ours, *arguments), gradients(theirs, *arguments), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4 * np.abs(b).max())
