import jax
import pytest

from tests.models.ops.gradients import check_same, normal
from vdm_jax.models.ops import product


@pytest.mark.parametrize(
    ("axes", "kernel"), [(1, (4, 2, 6)), (2, (2, 6, 4)), (1, (6, 4)), (2, (2, 2, 2, 6))]
)
def test_linear_is_a_product_with_a_matrix(axes, kernel):
    dimensions = tuple(range(2, 2 + axes)), tuple(range(axes))

    def plain(x, kernel):
        return jax.lax.dot_general(x, kernel, (dimensions, ((), ())))

    def ours(x, kernel):
        return product.linear(x, kernel, (dimensions, ((), ())))

    check_same(ours, plain, *normal(2, (3, 5, *kernel[:axes]), kernel))
