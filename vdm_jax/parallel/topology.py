"""Machines that are not here, as devices that XLA can compile for.

`parse_topology("v5p:8x8x8", slices=2)` names a machine, `Topology.devices()` gives its devices: a
mesh over them, and arrays described by `jax.ShapeDtypeStruct`, are all that `jit(...).lower(...)`
needs. TPUs are compiled for by libtpu (`pip install "jax[tpu]"`, which brings the version that goes
with jax: another one may write programs whose text jax cannot read), GPUs by the CUDA plugin
(`pip install "jax[cuda13]"`); neither needs the hardware.

libtpu makes a device list of many shapes that nobody can rent, and ends the process over a size of
0. So shapes are checked here, against the Cloud TPU documentation, before it is asked.

Importing this module imports no JAX: `prepare_environment` comes before JAX chooses a backend.
"""

import dataclasses
import glob
import importlib.util
import math
import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vdm_jax.parallel.chips import Chip, chip

if TYPE_CHECKING:
    import jax

# Cloud TPU documentation, "TPU v5e" and "TPU v6e": the shapes of a slice.
_PLANES = ((1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16))
# Likewise "TPU v4", "TPU v5p" and "TPU7x": within a cube of 4x4x4, and multiples of 4 in ascending
# order, up to so many chips.
_PARTS_OF_CUBE = ((2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4))
_MOST_CHIPS = {"v4": 4096, "v5p": 6144, "tpu7x": 9216}
# GPUs that one NVLink switch joins, those of a host: more hosts are more slices.
_GPUS = ((1,), (2,), (4,), (8,))

TPU_FAMILIES = ("v4", "v5e", "v5p", "v6e", "tpu7x")
GPU_FAMILIES = ("h100", "h200", "a100")
FAMILIES = TPU_FAMILIES + GPU_FAMILIES

# Keeps libtpu from asking Google Cloud's metadata server what machine this is, and from writing
# logs. What it is told instead concerns the attached TPU, which there is none of.
_QUIET_LIBTPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_LOG_DIR": "disabled",
}


class TopologyError(ValueError):
    """A machine that does not exist, or that cannot be compiled for here."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """A machine: so many slices, each of one shape, of one kind of chip.

    A slice is what one fast network joins (ICI, NVLink).

    Attributes:
      name: FAMILY:SHAPE, as in "v5p:8x8x8".
      chip: figures of one device.
      shape: chips of a slice along each axis.
      slices: how many slices there are.
      num_devices: JAX devices of all slices together.
    """

    name: str
    chip: Chip
    shape: tuple[int, ...]
    slices: int
    num_devices: int

    def __str__(self) -> str:
        return self.name if self.slices == 1 else f"{self.slices} x {self.name}"

    @property
    def is_tpu(self) -> bool:
        """Whether libtpu compiles for it, not the CUDA plugin."""
        return self.chip.name in TPU_FAMILIES

    def devices(self) -> "list[jax.Device]":
        """Its devices, for compilation only. Raises TopologyError where no compiler is installed.

        On several slices of TPUs, devices have a `slice_index`. GPUs have not: the host of a GPU is
        its `process_index`. Call `prepare_environment` first.
        """
        devices = self._tpu_devices() if self.is_tpu else self._gpu_devices()
        if len(devices) != self.num_devices:
            raise TopologyError(
                f"topology {self} has {self.num_devices} devices, but the compiler installed here "
                f"makes {len(devices)} of it"
            )
        return devices

    def _tpu_devices(self) -> "list[jax.Device]":
        if importlib.util.find_spec("libtpu") is None and "TPU_LIBRARY_PATH" not in os.environ:
            raise TopologyError(
                f"topology {self} is compiled by libtpu, which is not installed: "
                'pip install "jax[tpu]"'
            )
        options: dict[str, Any] = {"wrap": self._wrap()}
        if self.chip.name == "v4":
            options["chip_config_name"] = "megacore"  # one device a chip, as JAX has it on a v4
        if self.shape == (1, 1):  # or libtpu looks for whole hosts of four
            options["chips_per_host_bounds"] = [1, 1, 1]
        if self.slices > 1:
            options["num_slices"] = self.slices
        return self._describe("tpu", topology_name=self.name, **options)

    def _gpu_devices(self) -> "list[jax.Device]":
        target = Path(__file__).with_name(f"{self.chip.name}.txtpb").read_text(encoding="utf-8")
        # Partitions of one host each.
        shape = f"{self.slices}x1x{self.shape[0]}"
        return self._describe("cuda", target_config=target, topology=shape)

    def _describe(self, platform: str, **options: Any) -> "list[jax.Device]":
        from jax.experimental import topologies

        try:
            return list(topologies.get_topology_desc(platform=platform, **options).devices)
        except NotImplementedError as error:
            raise TopologyError(
                f"topology {self} is compiled by JAX's CUDA plugin, which is not installed: "
                'pip install "jax[cuda13]"'
            ) from error
        except RuntimeError as error:  # JaxRuntimeError is one
            advice = "see the message of the compiler"
            if "lockfile" in str(error):
                advice = (
                    "another process has loaded libtpu, as every JAX process does that runs "
                    "without JAX_PLATFORMS=cpu where libtpu is installed. On a machine without "
                    "TPUs, ALLOW_MULTIPLE_LIBTPU_LOAD=1 permits it (prepare_environment sets it)"
                )
            raise TopologyError(f"topology {self}: {advice}: {error}") from error

    def _wrap(self) -> list[bool]:
        """Along which axes the links close to a ring (x, y, z).

        Whole cubes do (Cloud TPU documentation, "TPU v5p"), and those axes of v5e and v6e that are
        as long as the pod (Austin et al. 2025, How to Scale Your Model).
        """
        if len(self.shape) == 2:
            return [size == 16 for size in self.shape] + [False]
        return [self.shape not in _PARTS_OF_CUBE] * 3


def parse_topology(text: str, slices: int = 1) -> Topology:
    """The machine of `slices` slices of `text`, FAMILY:SHAPE.

    A family is one of `FAMILIES`; a shape is in chips ("v5e:16x16", "v5p:4x4x8", "h100:8"). Raises
    TopologyError, a ValueError, naming the value and what is allowed.
    """
    example = "such as v5e:16x16, v5p:4x4x8 or h100:8"
    found = re.fullmatch(r"([^:]*):(\d+(?:x\d+)*)", text.strip().lower())
    if found is None:
        raise TopologyError(f"topology {text!r} is not FAMILY:SHAPE, {example}")
    family, shape = found[1], tuple(int(size) for size in found[2].split("x"))
    if family not in FAMILIES:
        raise TopologyError(
            f"topology {text!r}: there is no family {family!r}; allowed: {', '.join(FAMILIES)}"
        )
    _check_shape(text, family, shape)
    if slices < 1:
        raise TopologyError(f"slices = {slices}: must be at least 1")
    kind = chip(family)
    return Topology(
        name=f"{family}:{'x'.join(map(str, shape))}",
        chip=kind,
        shape=shape,
        slices=slices,
        num_devices=math.prod(shape) * kind.devices_per_chip * slices,
    )


def _check_shape(text: str, family: str, shape: tuple[int, ...]) -> None:
    most = _MOST_CHIPS.get(family)
    listed = _PARTS_OF_CUBE if most else _GPUS if family in GPU_FAMILIES else _PLANES
    allowed = ", ".join("x".join(map(str, sizes)) for sizes in listed)
    if shape in listed:
        return
    axes = len(listed[0])
    if most:
        cubes = all(size > 0 and size % 4 == 0 for size in shape) and list(shape) == sorted(shape)
        if len(shape) == axes and cubes and math.prod(shape) <= most:
            return
        allowed += f", or three multiples of 4 in ascending order, of at most {most} chips"
    else:
        allowed += "; for more, use more slices"
    reason = "there is no such slice"
    if len(shape) != axes:
        reason = f"a slice of {family} has {axes} {'axis' if axes == 1 else 'axes'}"
    raise TopologyError(f"topology {text!r}: {reason}; allowed of {family}: {allowed}")


def on_tpu_host() -> bool:
    """Whether TPUs are attached to this machine: as accelerators, or as numbered VFIO groups."""
    return bool(glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*"))


def prepare_environment(topology: Topology) -> None:
    """Sets the environment in which `topology` can be compiled for, whatever is attached here.

    JAX's own arrays are put on the CPU, so that no accelerator is taken. libtpu is kept quiet and
    off the network, unless the environment says otherwise, and is allowed to be loaded by several
    processes, but never where TPUs are attached: they can serve one process only. To be called
    before JAX's first operation.
    """
    os.environ["JAX_PLATFORMS"] = "cpu"
    if "jax" in sys.modules:  # which has read the variable already
        sys.modules["jax"].config.update("jax_platforms", "cpu")
    if topology.is_tpu:
        for name, value in _QUIET_LIBTPU.items():
            os.environ.setdefault(name, value)
        if not on_tpu_host():
            os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
