"""Many processes as one program: who coordinates, how many there are, which one this is."""

import dataclasses
import importlib.util
import json
import os
import socket
from collections.abc import Mapping
from typing import Any

import jax
from jax._src import distributed as service  # it has no public interface yet

from vdm_jax.parallel import gpus, topology, versions

COORDINATOR, NUM_PROCESSES, PROCESS_ID = (
    "VDM_JAX_COORDINATOR",
    "VDM_JAX_NUM_PROCESSES",
    "VDM_JAX_PROCESS_ID",
)
# Seconds without a sign of life after which a process is given up, and with it the run.
HEARTBEAT_TIMEOUT = 100
# Seconds that a process waits for the software of another one, which has joined already.
_PATIENCE = 300


class DistributedError(ValueError):
    """Processes that are described in part, or that do not find each other."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Processes:
    """What `jax.distributed.initialize` is told; None is what JAX finds out by itself.

    Attributes:
      coordinator: "host:port" of the first process.
      count: number of processes.
      index: which of them this is, from 0.
      local_devices: which of the machine's GPUs are this process's.
    """

    coordinator: str | None = None
    count: int | None = None
    index: int | None = None
    local_devices: tuple[int, ...] | None = None


def find(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Processes | None:
    """The processes of this program: as given, else as the environment says; None: only this one.

    In this order: the arguments, completed by VDM_JAX_COORDINATOR, VDM_JAX_NUM_PROCESSES and
    VDM_JAX_PROCESS_ID; Slurm, where a step has more than one task; the TPUs of this machine, which
    know the others of their slice. Raises DistributedError where only a part is given.
    """
    given = {
        "coordinator": coordinator or environment.get(COORDINATOR) or None,
        "count": _number(NUM_PROCESSES, num_processes, environment),
        "index": _number(PROCESS_ID, process_id, environment),
    }
    flags = {"coordinator": "--coordinator", "count": "--num_processes", "index": "--process_id"}
    missing = [flags[name] for name, value in given.items() if value is None]
    if len(missing) < len(given):
        if missing:
            raise DistributedError(
                f"{', '.join(missing)} missing: --coordinator=HOST:PORT, --num_processes=N and "
                f"--process_id=I (or {COORDINATOR}, {NUM_PROCESSES}, {PROCESS_ID}) go together"
            )
        if not 0 <= given["index"] < given["count"]:
            raise DistributedError(
                f"--process_id = {given['index']}: must be 0 to {given['count'] - 1}"
            )
        if ":" not in given["coordinator"]:
            raise DistributedError(
                f"--coordinator = {given['coordinator']!r}: must be HOST:PORT of process 0"
            )
        return Processes(**given)
    if int(environment.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in environment:
        return Processes(local_devices=_slurm_gpus(environment))
    platforms = environment.get("JAX_PLATFORMS") or "tpu"
    has_tpu = topology.on_tpu_host() and importlib.util.find_spec("libtpu") is not None
    return Processes() if "tpu" in platforms and has_tpu else None


def initialize(processes: Processes | None) -> None:
    """Joins the other processes, before JAX looks for devices.

    Raises DistributedError, in every process, where they do not meet or where their software
    differs (`versions.PACKAGES`, Python and the code of vdm_jax).
    """
    if processes is None:
        return
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            processes.coordinator,
            processes.count,
            processes.index,
            processes.local_devices,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
        )
    except (RuntimeError, ValueError) as error:
        raise DistributedError(f"the processes of this run did not meet: {error}") from error
    state = service.global_state
    compare_software(state.client, state.process_id, state.num_processes)


def compare_software(client: Any, index: int, count: int) -> None:
    """Raises DistributedError, in all `count` processes alike, where their software differs.

    client: of JAX's coordination service, to which all processes are connected.
    """
    if count == 1:
        return
    key = "vdm_jax/software"
    client.key_value_set(f"{key}/{index}", json.dumps([socket.gethostname(), versions.own()]))
    try:
        reports = [
            json.loads(client.blocking_key_value_get(f"{key}/{i}", _PATIENCE * 1000))
            for i in range(count)
        ]
    except RuntimeError as error:
        raise DistributedError(f"the processes of this run did not meet: {error}") from error
    lines = versions.differences(*zip(*reports, strict=True))
    if lines:
        raise DistributedError(
            "the processes of this run have different software:\n  "
            + "\n  ".join(lines)
            + "\nInstall the same everywhere: bash launch/setup_env.sh on every machine, from the "
            "same commit."
        )


def _slurm_gpus(environment: Mapping[str, str]) -> tuple[int, ...] | None:
    """All GPUs of the node, where one task has it to itself: JAX would give it the first only.

    Clusters without GPUs as generic resources do not set SLURM_GPUS_ON_NODE: nvidia-smi counts.
    """
    tasks = environment.get(
        "SLURM_STEP_TASKS_PER_NODE", environment.get("SLURM_TASKS_PER_NODE", "")
    )
    if tasks.split("(")[0] != "1" or "JAX_LOCAL_DEVICE_IDS" in environment:
        return None
    number = environment.get("SLURM_GPUS_ON_NODE", "")
    count = int(number) if number.isdigit() else gpus.visible(environment)
    return tuple(range(count)) or None


def _number(name: str, given: int | None, environment: Mapping[str, str]) -> int | None:
    if given is not None or not environment.get(name):
        return given
    if not environment[name].isdigit():
        raise DistributedError(f"{name} = {environment[name]!r}: must be a number")
    return int(environment[name])
