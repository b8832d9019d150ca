"""Who the processes of a program are, by flags and by what schedulers put into the environment."""

import pytest

from vdm_jax.parallel import distributed, topology
from vdm_jax.parallel.distributed import DistributedError, Processes

SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}


@pytest.fixture(autouse=True)
def no_tpu(monkeypatch):
    monkeypatch.setattr(topology, "on_tpu_host", lambda: False)


def test_one_process_is_the_rule():
    assert distributed.find(environment={}) is None
    assert distributed.find(environment={"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}) is None


def test_flags_come_before_the_environment():
    environment = {
        "VDM_JAX_COORDINATOR": "first:1",
        "VDM_JAX_NUM_PROCESSES": "4",
        "VDM_JAX_PROCESS_ID": "3",
        **SLURM,
    }
    assert distributed.find(environment=environment) == Processes(
        coordinator="first:1", count=4, index=3
    )
    assert distributed.find("other:2", 2, 0, environment) == Processes(
        coordinator="other:2", count=2, index=0
    )


def test_slurm_and_tpus_are_left_to_jax(monkeypatch):
    assert distributed.find(environment=SLURM) == Processes()
    monkeypatch.setattr(topology, "on_tpu_host", lambda: True)
    monkeypatch.setattr(distributed.importlib.util, "find_spec", lambda name: name == "libtpu")
    assert distributed.find(environment={}) == Processes()
    assert distributed.find(environment={"JAX_PLATFORMS": "cpu"}) is None


@pytest.mark.parametrize(
    ("environment", "gpus"),
    [
        ({"SLURM_TASKS_PER_NODE": "1(x4)", "SLURM_GPUS_ON_NODE": "8"}, tuple(range(8))),
        ({"SLURM_TASKS_PER_NODE": "8(x4)", "SLURM_GPUS_ON_NODE": "8"}, None),
        ({"SLURM_STEP_TASKS_PER_NODE": "1", "SLURM_GPUS_ON_NODE": "2"}, (0, 1)),
        (
            {
                "SLURM_TASKS_PER_NODE": "1(x4)",
                "SLURM_GPUS_ON_NODE": "8",
                "JAX_LOCAL_DEVICE_IDS": "0,1",
            },
            None,
        ),
        ({"SLURM_TASKS_PER_NODE": "1(x4)"}, None),
    ],
)
def test_a_task_that_has_a_node_has_all_its_gpus(environment, gpus):
    assert distributed.find(environment=SLURM | environment).local_devices == gpus


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (("host:1", 2, None), {}, "--process_id missing"),
        ((None, 2, 0), {}, "--coordinator missing"),
        ((None, None, None), {"VDM_JAX_PROCESS_ID": "1"}, "--coordinator, --num_processes missing"),
        (("host:1", 2, 2), {}, "--process_id = 2: must be 0 to 1"),
        (("host", 2, 1), {}, "--coordinator = 'host': must be HOST:PORT"),
        ((None, None, None), {"VDM_JAX_NUM_PROCESSES": "two"}, "VDM_JAX_NUM_PROCESSES = 'two'"),
    ],
)
def test_what_does_not_go_together_is_told(arguments, environment, message):
    with pytest.raises(DistributedError, match=message):
        distributed.find(*arguments, environment)
