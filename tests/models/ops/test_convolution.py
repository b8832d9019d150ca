"""The convolution against that of lax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vdm_jax.models.ops import convolution


@pytest.mark.parametrize("size", [1, 3, 5])
def test_gradients_of_a_convolution_are_those_of_lax(size):
    """By x and by the kernel; alone, in a map and in a scan."""
    random = np.random.default_rng(size)
    x = jnp.asarray(random.normal(size=(3, 6, 5, 4)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(size, size, 4, 7)), jnp.float32)
    towards = jnp.asarray(random.normal(size=(3, 6, 5, 7)), jnp.float32)

    def plain(x, kernel):
        pad = [(size // 2, size // 2)] * 2
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), pad, dimension_numbers=names)

    def gradients(conv):
        def alone(x, kernel):
            return jnp.vdot(jnp.tanh(conv(x, kernel)), towards)

        def mapped(x, kernel):
            rows = jax.vmap(lambda row: conv(row[None], kernel)[0])(x)
            return jnp.vdot(jnp.tanh(rows), towards)

        def scanned(x, kernel):
            def body(total, row):
                return total + jnp.sum(conv(row[None], kernel) ** 2), None

            return jax.lax.scan(body, 0.0, x)[0]

        return jax.jit(
            lambda x, kernel: [jax.grad(f, (0, 1))(x, kernel) for f in (alone, mapped, scanned)]
        )(x, kernel)

    np.testing.assert_allclose(convolution.same_conv(x, kernel), plain(x, kernel), rtol=1e-6)
    ours, theirs = gradients(convolution.same_conv), gradients(plain)
    for own, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (1, 1), (1, 2)])
def test_a_convolution_over_frames_is_that_of_lax(size, stride):
    """Its values and its gradients, on this device and as other devices compute it."""
    random = np.random.default_rng(size)
    x = jnp.asarray(random.normal(size=(2, 7, 6, 5, 4)), jnp.float32)
    kernel = jnp.asarray(random.normal(size=(3, size, size, 4, 6)), jnp.float32)

    def plain(x, kernel):
        pad, names = (size // 2,) * 2, ("NDHWC", "DHWIO", "NDHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, 1, 1), [(0, 0), pad, pad], dimension_numbers=names
        )

    def found(conv):
        gradients = jax.grad(lambda x, kernel: jnp.sum(jnp.tanh(conv(x, kernel))), (0, 1))
        return jax.jit(lambda: (conv(x, kernel), gradients(x, kernel)))()

    ours = found(lambda x, kernel: convolution.frames_conv(x, kernel, stride))
    for own, other in zip(jax.tree.leaves(ours), jax.tree.leaves(found(plain)), strict=True):
        np.testing.assert_allclose(own, other, rtol=1e-4, atol=1e-4)
    text = jax.jit(lambda: convolution.frames_conv(x, kernel, stride)).trace()
    assert "dim_numbers = [b, 0, 1, 2, f]" in text.lower(lowering_platforms=("tpu",)).as_text()
