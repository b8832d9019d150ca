"""Meshes, sharding rules, many hosts, and compilation for machines that are not here."""

from typing import Any

from vdm_jax import rules


class _Axis(rules.Number):
    """The size of an axis of a mesh."""

    def allows(self, value: Any) -> bool:
        return value == -1 or super().allows(value)

    def __str__(self) -> str:
        return "at least 1, or -1 for what the other axes leave"


RULES = {
    **{f"mesh.{axis}": _Axis(low=1) for axis in ("data", "fsdp", "tensor", "context")},
    **{f"mesh.dcn_{axis}": _Axis(low=1) for axis in ("data", "fsdp", "tensor", "context")},
    "mesh.min_fsdp_size": rules.COUNT,
    "mesh.offload": rules.Choice((False, True)),
}
