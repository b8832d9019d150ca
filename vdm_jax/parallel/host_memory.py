"""Parameters that lie in the host's memory, and are moved to the device by the program that uses
them.

A copy on the device lives from before its first use to its last one in that program, so that the
device's memory holds the networks that are in use, not all that there are.
"""

from collections.abc import Collection, Mapping
from typing import Any

import jax
from jaxtyping import PyTree

KINDS = ("pinned_host", "unpinned_host")


def kind(devices: Collection[jax.Device]) -> str:
    """The name of the host's memory as `devices` reach it. Raises ValueError where they cannot."""
    # Devices of other processes, and those of a topology that is compiled for, tell nothing.
    kinds = {memory.kind for device in devices for memory in device.addressable_memories()}
    for name in KINDS:
        if name in kinds or not kinds:
            return name
    raise ValueError(
        f"mesh.offload = True: {next(iter(devices)).device_kind} has no memory of the host, only "
        f"{', '.join(sorted(kinds))}"
    )


def places(tree: PyTree) -> PyTree:
    """Shardings with the host's memory in the place of the devices'. Raises ValueError."""
    return jax.tree.map(lambda place: place.with_memory_kind(kind(place.device_set)), tree)


def is_stored(tree: PyTree) -> bool:
    """Whether arrays, or shapes with places, lie in the host's memory."""
    places = [getattr(leaf, "sharding", None) for leaf in jax.tree.leaves(tree)]
    return any(place is not None and place.memory_kind in KINDS for place in places)


def on_device(parts: Mapping[str, PyTree], stored: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """`parts` with those on the device that `stored` has in the host's memory.

    Args:
      parts: networks' parameters by name, also while a function is traced, where they have no place
        yet.
      stored: the arrays, or shapes with places, that they stand for.
    """
    return {
        name: _moved(part, stored[name]) if is_stored(stored.get(name)) else part
        for name, part in parts.items()
    }


def _moved(part: PyTree, stored: PyTree) -> PyTree:
    places: Any = jax.tree.map(lambda leaf: leaf.sharding.with_memory_kind("device"), stored)
    return jax.device_put(part, places)
