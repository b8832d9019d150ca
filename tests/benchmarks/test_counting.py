import jax
import jax.numpy as jnp

from benchmarks import counting


def flops(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return counting.count_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def test_products_and_convolutions_are_counted_two_a_multiply_add():
    assert flops(jnp.matmul, (3, 5), (5, 7)) == 2 * 3 * 5 * 7
    assert flops(lambda a, b: jnp.einsum("bnd,bmd->bnm", a, b), (2, 3, 4), (2, 5, 4)) == 2 * 120

    def conv(x, kernel, **options):
        names = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            x, kernel, padding="SAME", dimension_numbers=names, **options
        )

    image, kernel = (2, 8, 8, 3), (3, 3, 3, 16)
    assert flops(lambda x, k: conv(x, k, window_strides=(1, 1)), image, kernel) == (
        2 * (2 * 8 * 8 * 16) * (3 * 3 * 3)
    )
    assert flops(lambda x, k: conv(x, k, window_strides=(2, 2)), image, kernel) == (
        2 * (2 * 4 * 4 * 16) * (3 * 3 * 3)
    )
    grouped = (3, 3, 1, 6)
    assert flops(
        lambda x, k: conv(x, k, window_strides=(1, 1), feature_group_count=3), image, grouped
    ) == 2 * (2 * 8 * 8 * 6) * (3 * 3)


def test_inner_functions_count_and_loops_count_each_turn():
    def scanned(x, w):
        return jax.lax.scan(lambda c, _: (jax.jit(jnp.matmul)(c, w), None), x, length=5)[0]

    assert flops(scanned, (3, 4), (4, 4)) == 5 * 2 * 3 * 4 * 4


def test_of_branches_one_is_counted_and_kinds_are_apart():
    from vdm_jax.models.ops import convolution

    def loss(x, kernel):
        return convolution.same_conv(x, kernel).sum()

    shapes = ((2, 8, 8, 3), (3, 3, 3, 16))
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    forward = 2 * (2 * 8 * 8 * 16) * (3 * 3 * 3)
    backward = jax.make_jaxpr(jax.grad(loss, argnums=(0, 1)))(*arguments).jaxpr
    # Each gradient has a branch for CPUs and one for the rest; forward is counted as well.
    assert counting.count_by_kind(backward) == {"convolution": 3 * forward}
