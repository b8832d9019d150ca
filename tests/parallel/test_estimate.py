"""The roofline of programs whose figures are given, and the words of a compiler out of memory."""

import types

import pytest

from vdm_jax.parallel import estimate
from vdm_jax.parallel.chips import Chip

CHIP = Chip(
    name="slate",
    peak_flops_bf16=100.0,
    hbm_bytes=1000,
    hbm_bandwidth=10.0,
    ici_bandwidth=4.0,
    ici_links=4,
    dcn_bandwidth=1.0,
    source="nobody",
)
PROGRAM = """HloModule jit_step, num_partitions=8

ENTRY %main (p: f32[2,2]) -> f32[16,2] {
  %p = f32[2,2]{1,0} parameter(0)
  ROOT %g = f32[16,2]{1,0} all-gather(%p), replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
}
"""


def read(flops=50.0, traffic=20.0, arguments=100, outputs=90, reused=80, temporaries=300, **given):
    memory = types.SimpleNamespace(
        argument_size_in_bytes=arguments,
        output_size_in_bytes=outputs,
        alias_size_in_bytes=reused,
        temp_size_in_bytes=temporaries,
        host_argument_size_in_bytes=5,
    )
    compiled = types.SimpleNamespace(
        memory_analysis=lambda: memory,
        cost_analysis=lambda: {"flops": flops, "bytes accessed": traffic},
        as_text=lambda: PROGRAM,
    )
    fields = {"parameters": 7, "batch": 16, "model_flops": 600.0, "hardware_flops": 800.0}
    return estimate.estimate(compiled, CHIP, devices=8, **(fields | given))


def test_the_largest_term_bounds_the_step():
    found = read()
    # 800 / 8 operations at 100 a second; 20 bytes at 10; 7/8 of 128 bytes at 4.
    assert (found.compute_seconds, found.memory_seconds) == (1.0, 2.0)
    assert found.network_seconds == pytest.approx(28.0)
    assert (found.bound, found.step_seconds) == ("network", found.network_seconds)
    assert found.clips_per_second == pytest.approx(16 / 28)
    assert found.mfu == pytest.approx(600 / (8 * 100 * 28))
    assert (found.outputs, found.memory, found.host_arguments) == (10, 410, 5)
    assert estimate.Estimate.from_dict(found.to_dict()) == found


def test_xla_may_count_more_operations_than_the_layers():
    assert read(flops=400.0).compute_seconds == 4.0


def test_loops_and_steps():
    found = read(repeats=3, steps=2)
    assert found.memory_seconds == 6.0  # one turn of three is counted
    assert found.network_seconds == pytest.approx(14.0)  # of two steps


def test_too_much_memory_is_told():
    with pytest.raises(estimate.DoesNotFitError, match="does not fit") as error:
        read(temporaries=2000)
    assert (error.value.needed, error.value.capacity) == (2110, 1000)


@pytest.mark.parametrize(
    "message",
    [
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (27.00G) exceeds available HBM (15.75G).",
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 27.00G of 15.75G hbm. Exceeded hbm capacity by 11.25G.",
    ],
)
def test_the_compiler_says_how_much(message):
    error = estimate.out_of_memory(message, CHIP)
    assert str(error) == "does not fit: 11.25 GiB over (27.00 of 15.75 GiB a device)"


def test_another_error_is_another_error():
    assert estimate.out_of_memory("INTERNAL: a bug", CHIP) is None
