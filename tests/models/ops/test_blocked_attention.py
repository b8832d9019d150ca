"""Attention in turns against attention at once."""

import chex
import jax
import jax.numpy as jnp
import pytest

from vdm_jax.models.ops import blocked_attention


@pytest.mark.parametrize("at_once", [1, 4, 6])
def test_values_and_gradients_are_attention_s(at_once, monkeypatch):
    """Of six sequences in turns of one, of three (four do not divide them), and all together."""
    monkeypatch.setattr(blocked_attention, "_WEIGHTS", at_once * 12**2)
    keys = jax.random.split(jax.random.key(0), 4)
    q, k, v, seen = (2 * jax.random.normal(key, (3, 12, 2, 5)) for key in keys)

    def both(attend):
        return jax.jit(jax.value_and_grad(lambda *qkv: (attend(*qkv) * seen).sum(), (0, 1, 2)))

    found = both(blocked_attention.attend)(q, k, v)
    chex.assert_trees_all_close(found, both(jax.nn.dot_product_attention)(q, k, v), atol=1e-4)


@pytest.mark.parametrize(
    ("fewest", "keys", "parts"), [(2, 12, 4), (3, 12, 4), (4, 10, 3), (5, 12, 1)]
)
def test_a_long_sequence_is_cut_into_parts_of_its_queries(fewest, keys, parts, monkeypatch):
    """Twelve queries of which three, or with fewer keys four, are allowed at a time; parts of five
    do not exist."""
    monkeypatch.setattr(blocked_attention, "_WEIGHTS", 40)
    monkeypatch.setattr(blocked_attention, "_FEWEST", fewest)
    assert blocked_attention._parts(12, keys) == parts
    shapes = [(2, 12, 2, 5), (2, keys, 2, 5), (2, keys, 2, 5), (2, 12, 2, 5)]
    drawn = zip(jax.random.split(jax.random.key(0), 4), shapes, strict=True)
    q, k, v, seen = (2 * jax.random.normal(key, shape) for key, shape in drawn)

    def both(attend):
        return jax.jit(jax.value_and_grad(lambda *qkv: (attend(*qkv) * seen).sum(), (0, 1, 2)))

    found = both(blocked_attention.attend)(q, k, v)
    chex.assert_trees_all_close(found, both(jax.nn.dot_product_attention)(q, k, v), atol=1e-4)


def test_one_long_sequence_is_never_whole_in_memory():
    """Its weights are 67 MB a head."""
    video = jax.ShapeDtypeStruct((1, 4096, 1, 4), jnp.float32)
    gradient = jax.grad(lambda q: blocked_attention.attend(q, q, q).sum())
    compiled = jax.jit(gradient).lower(video).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 4096**2 / 2


def test_large_logits_do_not_overflow_and_the_dtype_is_kept():
    q = jnp.full((1, 4, 1, 2), 100.0, jnp.bfloat16)
    v = jnp.arange(8, dtype=jnp.bfloat16).reshape(1, 4, 1, 2)
    out = blocked_attention.attend(q, q, v)
    assert out.dtype == jnp.bfloat16
    chex.assert_trees_all_close(out[0, 0, 0], jnp.array([3.0, 4.0], jnp.bfloat16))


def test_memory_does_not_hold_the_weights():
    """Those of 64 sequences are 67 MB."""
    video = jax.ShapeDtypeStruct((64, 512, 1, 4), jnp.float32)
    compiled = jax.jit(blocked_attention.attend).lower(video, video, video).compile()
    weights = 4 * 64 * 512**2
    assert compiled.memory_analysis().temp_size_in_bytes < weights / 4
