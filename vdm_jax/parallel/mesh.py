"""Meshes of devices: what `config.mesh` asks for, laid onto the devices that there are.

Four axes, the same in every program:

- data: clips; parameters are repeated along it;
- fsdp: clips too, and parameters, optimiser and moving average are cut up along it (Rajbhandari
  et al. 2020, ZeRO stage 3; Zhao et al. 2023, FSDP);
- tensor: the hidden channels and heads inside a block (Shoeybi et al. 2019, Megatron-LM);
- context: the frames of a clip, or in temporal layers its pixels (Jacobs et al. 2023, Ulysses).

Of several slices or racks joined by a slower network, each axis has a `dcn_` counterpart: how many
times it is repeated over that network.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

AXES = ("data", "fsdp", "tensor", "context")


class MeshError(ValueError):
    """A mesh that cannot be made of the devices, or that a batch or a network does not fit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshShape:
    """Sizes of the axes within a slice and over slices, in the order of `AXES`."""

    inner: tuple[int, ...]
    outer: tuple[int, ...] = (1,) * len(AXES)

    @property
    def total(self) -> dict[str, int]:
        """The whole size of each axis."""
        return {a: i * o for a, i, o in zip(AXES, self.inner, self.outer, strict=True)}

    def __str__(self) -> str:
        return " x ".join(f"{axis} {size}" for axis, size in self.total.items())


def mesh_shape(config: Mapping[str, Any], num_devices: int, num_slices: int = 1) -> MeshShape:
    """The sizes that `config` (a configuration's `mesh`) asks for of `num_devices` devices.

    One size within a slice and one over slices may be -1: what the others leave. Raises MeshError
    naming the field where it is not known, or where the sizes do not multiply to the number of
    devices or slices.
    """
    for name, size in config.items():
        if name not in (*_FIELDS, *_OTHER_FIELDS):
            raise MeshError(f"mesh.{name} = {size!r}: the axes are {', '.join(_FIELDS)}")
        if not isinstance(size, int):
            raise MeshError(f"mesh.{name} = {size!r}: must be an integer")
    inner = _fill(
        config, "", num_devices // num_slices, "devices" + " of a slice" * (num_slices > 1)
    )
    outer = _fill(config, "dcn_", num_slices, "slices")
    return MeshShape(inner=inner, outer=outer)


def make_mesh(config: Mapping[str, Any], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh of `config` over `devices`, all that there are unless given. Raises MeshError.

    Neighbours on the last axes are neighbours in the machine. The axes are those that the
    partitioner works on by itself (AxisType.Auto).
    """
    devices = list(jax.devices() if devices is None else devices)
    slices = len({getattr(device, "slice_index", None) or 0 for device in devices})
    shape = mesh_shape(config, len(devices), slices)
    if slices > 1:
        laid = mesh_utils.create_hybrid_device_mesh(
            shape.inner, shape.outer, devices, allow_split_physical_axes=True
        )
    elif devices[0].platform == "tpu" and len(devices) > 1:
        laid = mesh_utils.create_device_mesh(shape.inner, devices, allow_split_physical_axes=True)
    else:
        laid = np.asarray(devices).reshape(shape.inner)
    return Mesh(laid, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def parse_mesh(text: str) -> dict[str, int]:
    """A mesh typed on one line, "fsdp=4,tensor=2", as a configuration's fields.

    Axes that are not named are 1, and data is what is left. Raises MeshError.
    """
    fields = {"data": -1}
    for part in filter(None, text.split(",")):
        name, equals, size = part.partition("=")
        if name.strip() not in _FIELDS or not equals or not size.strip().lstrip("-").isdigit():
            raise MeshError(
                f"mesh = {text!r}: {part!r} is not AXIS=SIZE with an axis of {', '.join(_FIELDS)}"
            )
        fields[name.strip()] = int(size)
    return fields


_FIELDS = (*AXES, *(f"dcn_{axis}" for axis in AXES))
_OTHER_FIELDS = ("min_fsdp_size", "offload")  # of a configuration's `mesh`, and no axis


def _fill(config: Mapping[str, Any], prefix: str, count: int, of_what: str) -> tuple[int, ...]:
    default = {f"{prefix}data": -1}
    fields = {
        f"{prefix}{axis}": config.get(f"{prefix}{axis}", default.get(f"{prefix}{axis}", 1))
        for axis in AXES
    }
    for name, size in fields.items():
        if size != -1 and size < 1:
            raise MeshError(f"mesh.{name} = {size}: must be at least 1, or -1 for the rest")
    rest = [name for name, size in fields.items() if size == -1]
    if len(rest) > 1:
        raise MeshError(f"mesh.{rest[0]} and mesh.{rest[1]} are both -1: one axis can be the rest")
    known = math.prod(size for size in fields.values() if size != -1)
    shown = ", ".join(f"mesh.{name} = {size}" for name, size in fields.items())
    if count % known or (not rest and known != count):
        raise MeshError(
            f"{shown}: the sizes multiply to {known}, which does not fit {count} {of_what}"
        )
    return tuple(count // known if size == -1 else size for size in fields.values())
