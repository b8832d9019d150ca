import jax
import jax.numpy as jnp
import pytest

from benchmarks import train_step


def flops(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return train_step.count_flops(jax.make_jaxpr(function)(*arguments).jaxpr)


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


def test_speed_up_is_the_median_of_the_rounds():
    results = {
        "train": {
            "vdm_jax": [[1.0, 1.0], [2.0, 2.0], [1.0, 3.0]],
            "peer": [[2.0, 2.0], [6.0, 6.0], [2.0, 2.0]],
        }
    }
    row = train_step.summarise(results, batch=4, ours="vdm_jax")["train"]["peer"]
    assert row["speedup"] == pytest.approx(2.0)
    assert (row["speedup_min"], row["speedup_max"]) == (1.0, 3.0)
    assert row["clips_per_s"] == pytest.approx(2.0)


def test_a_busy_machine_is_refused(monkeypatch):
    monkeypatch.setattr(train_step.os, "getloadavg", lambda: (1.7, 1.0, 1.0))
    with pytest.raises(SystemExit, match=r"load 1\.70"):
        train_step.refuse_if_busy(0.5)
    assert train_step.refuse_if_busy(2.0) == 1.7
