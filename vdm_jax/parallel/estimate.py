"""What a compiled program takes on each device, and the least time that it can take.

The roofline is the usual one: operations at the peak of the matrix units, bytes at the bandwidth of
the memory, bytes at that of the network, each as if it were alone; the largest bounds the step.
"""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from vdm_jax.parallel import hlo
from vdm_jax.parallel.chips import Chip

GIB = 2**30


class DoesNotFitError(ValueError):
    """A program that needs more memory than a device has. needed, capacity: bytes a device."""

    def __init__(self, needed: float, capacity: float):
        self.needed, self.capacity = needed, capacity
        super().__init__(
            f"does not fit: {(needed - capacity) / GIB:.2f} GiB over "
            f"({needed / GIB:.2f} of {capacity / GIB:.2f} GiB a device)"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """A compiled program's figures. Bytes, operations and seconds are of one device and one step.

    Attributes:
      devices: number of devices.
      parameters: of the network.
      batch: clips a step, all devices together.
      model_flops: operations that a step needs, counted analytically, all devices together.
      flops: operations of a device: with what is computed again, or as XLA counts, whichever is
        more (XLA counts the body of a loop once, and custom kernels hardly).
      arguments, outputs, temporaries: memory; outputs that reuse arguments are not counted again.
      capacity: memory of a device.
      memory_traffic: bytes that pass between a device's memory and its units.
      collectives: see `hlo.collectives`.
      network_bytes: that a device sends, in rings.
      compute_seconds, memory_seconds, network_seconds: the three terms of the roofline.
      compile_seconds: what compiling took here.
      host_arguments: bytes of arguments in the host's memory (`host_memory`), not in `memory`.
    """

    devices: int
    parameters: int
    batch: int
    model_flops: float
    flops: float
    arguments: int
    outputs: int
    temporaries: int
    capacity: float
    memory_traffic: float
    collectives: Sequence[hlo.Collective]
    network_bytes: float
    compute_seconds: float
    memory_seconds: float
    network_seconds: float
    compile_seconds: float
    host_arguments: int = 0

    @property
    def memory(self) -> int:
        """Bytes that the program takes of a device."""
        return self.arguments + self.outputs + self.temporaries

    @property
    def step_seconds(self) -> float:
        """The largest term of the roofline: no step is faster."""
        return max(self._terms.values())

    @property
    def bound(self) -> str:
        """The name of that term: compute, memory or network."""
        return max(self._terms, key=self._terms.get)

    @property
    def mfu(self) -> float:
        """The model's operations over what the devices could do in that time."""
        return (
            self.compute_seconds / self.step_seconds * self.model_flops / self.devices / self.flops
        )

    @property
    def clips_per_second(self) -> float:
        return self.batch / self.step_seconds

    @property
    def _terms(self) -> dict[str, float]:
        return {
            "compute": self.compute_seconds,
            "memory": self.memory_seconds,
            "network": self.network_seconds,
        }

    def to_dict(self) -> dict[str, Any]:
        """All figures, as JSON takes them."""
        derived = ("memory", "step_seconds", "bound", "mfu", "clips_per_second")
        return dataclasses.asdict(self) | {name: getattr(self, name) for name in derived}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Estimate":
        """The estimate of `to_dict`."""
        names = {field.name for field in dataclasses.fields(cls)}
        fields = {name: value for name, value in values.items() if name in names}
        fields["collectives"] = [hlo.Collective(**row) for row in values["collectives"]]
        return cls(**fields)


def estimate(
    compiled: Any,
    chip: Chip,
    *,
    devices: int,
    parameters: int,
    batch: int,
    model_flops: float,
    hardware_flops: float,
    steps: int = 1,
    repeats: int = 1,
    compile_seconds: float = 0.0,
) -> Estimate:
    """Reads a compiled program (`jax.stages.Compiled`) of `steps` equal steps.

    hardware_flops: analytic operations of a step with what is computed again, all devices together.
    repeats: how often a step runs its loop (microbatches), of which XLA counts one turn. Raises
    DoesNotFitError where the program needs more than `chip` has.
    """
    memory = compiled.memory_analysis()
    cost = compiled.cost_analysis() or {}
    reused = memory.alias_size_in_bytes
    arguments = memory.argument_size_in_bytes
    outputs = memory.output_size_in_bytes - reused
    needed = arguments + outputs + memory.temp_size_in_bytes
    if needed > chip.hbm_bytes:
        raise DoesNotFitError(needed, chip.hbm_bytes)
    found = hlo.collectives(compiled.as_text(), devices)
    wire = {"ici": 0.0, "dcn": 0.0}
    for row in found:
        wire[row.network] += row.wire_bytes / steps
    flops = max(hardware_flops / devices, cost.get("flops", 0.0))
    traffic = cost.get("bytes accessed", 0.0) * repeats
    return Estimate(
        devices=devices,
        parameters=parameters,
        batch=batch,
        model_flops=model_flops,
        flops=flops,
        arguments=arguments,
        outputs=outputs,
        temporaries=memory.temp_size_in_bytes,
        capacity=chip.hbm_bytes,
        memory_traffic=traffic,
        collectives=found,
        network_bytes=sum(wire.values()),
        compute_seconds=flops / chip.peak_flops_bf16,
        memory_seconds=traffic / chip.hbm_bandwidth,
        network_seconds=wire["ici"] / chip.ici_bandwidth + wire["dcn"] / chip.dcn_bandwidth,
        compile_seconds=compile_seconds,
        host_arguments=memory.host_argument_size_in_bytes,
    )


def out_of_memory(message: str, chip: Chip) -> DoesNotFitError | None:
    """The error that a compiler's message tells of, None where it tells of something else."""
    if "RESOURCE_EXHAUSTED" not in message:
        return None
    size = r"([\d.]+)([KMGT])"
    found = re.search(rf"\({size}\) exceeds available HBM \({size}\)", message)
    found = found or re.search(rf"Used {size} of {size} hbm", message)
    if not found:
        return DoesNotFitError(float("nan"), chip.hbm_bytes)
    unit = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    used, used_unit, limit, limit_unit = found.groups()
    return DoesNotFitError(float(used) * unit[used_unit], float(limit) * unit[limit_unit])
