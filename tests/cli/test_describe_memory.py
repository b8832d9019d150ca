"""Memory estimated from shapes, against closed forms and XLA's analysis of the compiled program."""

import types

import jax
import jax.numpy as jnp
import pytest

from vdm_jax import config as config_lib
from vdm_jax import systems
from vdm_jax.cli import describe_memory
from vdm_jax.parallel import liveness
from vdm_jax.stage.sampler import Sampler

SIDE = 64
SQUARE = 4 * SIDE * SIDE
X = jax.ShapeDtypeStruct((SIDE, SIDE), jnp.float32)


def peak(function, *arguments, **kwargs):
    return liveness.peak_bytes(jax.make_jaxpr(function)(*arguments), **kwargs)


def test_arrays_live_from_their_making_to_their_last_use():
    assert peak(lambda x: x @ x @ x @ x, X) == 2 * SQUARE  # one product is made of one before
    assert peak(lambda x: (x @ x) @ (x @ x.T), X) == 3 * SQUARE


def test_elementwise_operations_are_fused():
    assert peak(lambda x: jnp.tanh(2 * x + 1).sum(), X) == 4
    assert peak(lambda x: jnp.tanh(2 * (x @ x)) @ x, X) == 2 * SQUARE


def test_a_loop_takes_the_memory_of_one_turn():
    def loop(x):
        return jax.lax.scan(lambda z, _: (jnp.tanh(z @ x), None), x, None, length=100)[0]

    assert peak(loop, X) <= 3 * SQUARE


def test_results_in_the_place_of_arguments_are_not_counted():
    assert peak(lambda x: (x @ x, x @ x.T), X) == 2 * SQUARE
    assert peak(lambda x: (x @ x, x @ x.T), X, in_place=1) == SQUARE


def layers(remat):
    def network(params, x):
        def layer(x, w):
            return jax.nn.gelu(x @ w) @ w.T

        for w in params:
            x = (jax.checkpoint(layer) if remat else layer)(x, w)
        return (x**2).mean()

    return jax.grad(network)


def test_gradients_are_near_the_compiled_programs_and_remat_takes_less():
    params = [jax.ShapeDtypeStruct((32, 256), jnp.float32) for _ in range(6)]
    x = jax.ShapeDtypeStruct((1024, 32), jnp.float32)
    estimates = {}
    for remat in (False, True):
        compiled = jax.jit(layers(remat)).lower(params, x).compile().memory_analysis()
        estimates[remat] = peak(layers(remat), params, x)
        if not remat:  # XLA on the CPU undoes rematerialisation
            real = compiled.temp_size_in_bytes + compiled.output_size_in_bytes
            assert 0.5 < estimates[remat] / real < 2
    assert estimates[True] < 0.6 * estimates[False]


@pytest.fixture(scope="module")
def compiled(config_file):
    """A real sampler, as small as it can be."""
    config = config_lib.load_config(config_file)
    stage = systems.build(config)
    sampler = Sampler.from_config(stage, config.sample)
    size = sampler.batch_size
    return sampler.compiled.lower(
        jax.eval_shape(stage.init, jax.random.key(0)),
        {},
        jax.eval_shape(lambda: jax.random.key(0)),
        jax.ShapeDtypeStruct((size,), jnp.uint32),
        stage.abstract_inputs(size),
        None,
        None,
    ).compile()


def test_a_sampler_takes_what_is_estimated(config_file, compiled):
    found = describe_memory.need(str(config_file), {}, "sample")
    real = compiled.memory_analysis()
    assert found.arguments == pytest.approx(real.argument_size_in_bytes, rel=0.01)
    activations = real.temp_size_in_bytes + real.output_size_in_bytes
    assert 0.5 < found.activations / activations < 2


def test_frozen_networks_in_the_hosts_memory_are_no_arguments(monkeypatch):
    named = "latent_image/scenes"
    found = [describe_memory.need(named, {"mesh.offload": o}, "sample") for o in ("false", "true")]
    parts = systems.abstract_frozen(
        config_lib.load_config(named), describe_memory._ONE, jax.devices()[:1]
    )
    size = liveness.array_bytes([part.params for part in parts.values()])
    assert size > 0 and found[0].arguments - found[1].arguments == size
    # What is copied to the device counts while it is used.
    assert 0 <= found[1].activations - found[0].activations <= size
    offload = {"mesh.offload": "true"}
    assert offload not in describe_memory._changes(named, {}, "sample")  # on a CPU
    monkeypatch.setattr(jax, "devices", lambda: [types.SimpleNamespace(platform="tpu")])
    assert describe_memory._changes(named, {}, "sample")[0] == offload
    assert offload not in describe_memory._changes(named, offload, "sample")


def test_an_optimiser_with_one_moment_a_matrix_needs_less(config_file):
    both = [
        describe_memory.need(str(config_file), {"train.optimizer": name}, "train").arguments
        for name in ("adamw", "muon")
    ]
    assert both[1] < both[0]


def test_training_needs_state_and_more_with_larger_batches(config_file, capsys, monkeypatch):
    whole = describe_memory.need(str(config_file), {}, "train")
    larger = describe_memory.need(str(config_file), {"train.batch_size": "64"}, "train")
    sampled = describe_memory.need(str(config_file), {}, "sample")
    assert larger.activations > 4 * whole.activations
    assert whole.arguments > 3.5 * sampled.arguments  # parameters, average, two moments
    assert [whole.verdict(int(share * whole.total)) for share in (2, 1.2, 0.9)] == [
        "fits",
        "may not fit",
        "does not fit",
    ]
    monkeypatch.setattr(describe_memory, "capacity", lambda device: int(1.2 * whole.total))
    assert describe_memory.run(str(config_file), {}, as_json=False) == 0
    printed = capsys.readouterr().out
    assert "sample: fits" in printed and "train: may not fit" in printed
    assert "--config." in printed
