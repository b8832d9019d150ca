"""Who the processes of a program are, by flags and by what schedulers put into the environment."""

import os
import socket
import subprocess
import sys
import textwrap
import threading

import pytest

from vdm_jax.parallel import distributed, gpus, topology, versions
from vdm_jax.parallel.distributed import DistributedError, Processes

SLURM = {"SLURM_NTASKS": "4", "SLURM_PROCID": "2"}


@pytest.fixture(autouse=True)
def no_tpu(monkeypatch):
    monkeypatch.setattr(topology, "on_tpu_host", lambda: False)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Puts an nvidia-smi on the PATH that lists so many GPUs, and fails where there are none."""

    def add(count, code=0):
        file = tmp_path / "nvidia-smi"
        lines = "".join(
            f"echo 'GPU {i}: NVIDIA H100 80GB HBM3 (UUID: GPU-{i})'\n" for i in range(count)
        )
        file.write_text(f'#!/bin/sh\n[ "$1" = -L ] || exit 9\n{lines}exit {code}\n')
        file.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))

    return add


@pytest.mark.parametrize(
    ("code", "environment", "count"),
    [
        (0, {}, 3),
        (9, {}, 0),  # a driver that does not answer
        (0, {"CUDA_VISIBLE_DEVICES": "1,2"}, 2),
        (0, {"CUDA_VISIBLE_DEVICES": "1,-1,2"}, 1),
        (0, {"CUDA_VISIBLE_DEVICES": ""}, 0),
        (0, {"CUDA_VISIBLE_DEVICES": "0,1,2,3,4,5"}, 3),
    ],
)
def test_gpus_are_counted_by_nvidia_smi(nvidia_smi, code, environment, count):
    nvidia_smi(3, code)
    assert gpus.visible(environment) == count


def test_without_nvidia_smi_there_are_no_gpus(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert gpus.visible({}) == gpus.listed() == 0


class Service:
    """Stands in for JAX's coordination service: a get waits until another process has set it."""

    def __init__(self):
        self._values, self._changed = {}, threading.Condition()

    def key_value_set(self, key, value):
        with self._changed:
            self._values[key] = value
            self._changed.notify_all()

    def blocking_key_value_get(self, key, milliseconds):
        with self._changed:
            if not self._changed.wait_for(lambda: key in self._values, milliseconds / 1000):
                raise RuntimeError(f"DEADLINE_EXCEEDED: {key}")
            return self._values[key]


def compared(monkeypatch, changes):
    """What `compare_software` raises, or None, in processes with these changes to their own."""
    local, service, own = threading.local(), Service(), versions.own()
    monkeypatch.setattr(versions, "own", lambda: own | changes[local.index])
    monkeypatch.setattr(distributed.socket, "gethostname", lambda: f"host{local.index}")
    raised = [None] * len(changes)

    def run(index):
        local.index = index
        try:
            distributed.compare_software(service, index, len(changes))
        except DistributedError as error:
            raised[index] = str(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(len(changes))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=10)
    return raised


def test_processes_with_the_same_software_go_on(monkeypatch):
    assert compared(monkeypatch, [{}, {}, {}]) == [None, None, None]


def test_other_software_in_one_process_stops_all_and_is_named(monkeypatch):
    messages = compared(monkeypatch, [{"jaxlib": "0.10.2"}, {"jaxlib": "0.10.1"}, {"jaxlib": ""}])
    assert len(set(messages)) == 1
    assert (
        "jaxlib: process 0 on host0: 0.10.2; process 1 on host1: 0.10.1; "
        "process 2 on host2: not installed" in messages[0]
    )
    assert "setup_env.sh" in messages[0] and "numpy" not in messages[0]


def test_other_code_and_a_package_that_one_process_lacks_are_named(monkeypatch):
    messages = compared(monkeypatch, [{}, {versions.CODE: "0123456789ab", "libtpu2": "1"}])
    assert f"{versions.CODE}: process 0" in messages[1]
    assert "libtpu2: process 0 on host0: not installed; process 1 on host1: 1" in messages[1]


def test_many_differing_processes_are_counted():
    software = [{"jax": "1"}, *[{"jax": "2"}] * 20]
    (line,) = versions.differences([f"h{i}" for i in range(21)], software)
    assert "process 8 on h8: 2; and 12 more" in line


def test_a_process_that_never_tells_its_software_is_no_endless_wait(monkeypatch):
    monkeypatch.setattr(distributed, "_PATIENCE", 0.01)
    with pytest.raises(DistributedError, match="did not meet: DEADLINE_EXCEEDED"):
        distributed.compare_software(Service(), 0, 2)


@pytest.mark.parametrize("other", ["", "4.0.0"])
def test_real_processes_compare_their_software(other):
    """Two processes of JAX, one of which reports another version of flax, before any device."""
    program = textwrap.dedent("""
        import sys
        from vdm_jax.parallel import distributed, versions
        address, index, other = sys.argv[1:]
        if other and index == "1":
            own = versions.own()
            versions.own = lambda: own | {"flax": other}
        try:
            processes = distributed.Processes(coordinator=address, count=2, index=int(index))
            distributed.initialize(processes)
        except distributed.DistributedError as error:
            print(error)
    """)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, address, str(i), other],
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
        )
        for i in (0, 1)
    ]
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert all("flax" in text and other in text for text in said) if other else said == ["", ""]


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
        ({"SLURM_TASKS_PER_NODE": "1(x4)"}, (0, 1, 2, 3)),  # nvidia-smi counts
        ({"SLURM_TASKS_PER_NODE": "1(x4)", "CUDA_VISIBLE_DEVICES": "2,3"}, (0, 1)),
        ({"SLURM_TASKS_PER_NODE": "1(x4)", "CUDA_VISIBLE_DEVICES": ""}, None),
    ],
)
def test_a_task_that_has_a_node_has_all_its_gpus(environment, gpus, nvidia_smi):
    nvidia_smi(4)
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
