"""Where parameters, batches and activations live on a mesh: one table of rules, and its use.

A network names the axes of its parameters and activations (`models/layers.py`) and knows no mesh;
this module knows meshes and no network. A `Plan` joins the two.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, PyTree

from vdm_jax.models import layers
from vdm_jax.models.ops import attention
from vdm_jax.parallel import context, host_memory
from vdm_jax.parallel.mesh import MeshError, make_mesh

# Logical names of a parameter's axes, and the mesh axis that may cut them up. A mesh axis cuts one
# axis of a parameter: that of the first of its rows here which it divides. Scales and shifts of
# normalisations (CHANNELS), kernel sizes and buckets are never cut.
PARAMETER_RULES: tuple[tuple[str, str], ...] = (
    (layers.HIDDEN, "tensor"),
    (layers.HEADS, "tensor"),
    (layers.IN, "fsdp"),
    (layers.OUT, "fsdp"),
    (layers.VOCAB, "fsdp"),
    (layers.HIDDEN, "fsdp"),
    (layers.HEADS, "fsdp"),
    (layers.HEAD_DIM, "fsdp"),
)
# Clips are spread over these axes; the frames of each, or in temporal layers its pixels, over
# `context`.
BATCH_AXES = ("data", "fsdp")
CONTEXT_AXIS = "context"
# A parameter of fewer elements is repeated along fsdp: gathering it would cost more time than the
# memory is worth.
MIN_FSDP_SIZE = 2**16


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterPlan:
    """Where one parameter lives.

    Attributes:
      spec: where it is stored, and with it its moving average and the optimiser's moments.
      gathered: where it is used: `spec` without fsdp.
      dtype: what it is cast to before it is gathered.
      note: why it is not cut as the first rule says, empty where it is.
    """

    spec: PartitionSpec
    gathered: PartitionSpec
    dtype: DTypeLike
    note: str = ""


def plan_parameter(
    shape: Sequence[int],
    names: Sequence[str | None],
    dtype: DTypeLike,
    sizes: Mapping[str, int],
    min_fsdp_size: int = MIN_FSDP_SIZE,
) -> ParameterPlan:
    """Applies `PARAMETER_RULES` to a parameter of `shape` whose axes have logical `names`.

    sizes: of the mesh axes. A mesh axis of size 1 cuts nothing.
    """
    axes: list[list[str]] = [[] for _ in shape]
    parts = list(shape)
    notes = []
    for mesh_axis in ("tensor", "fsdp"):
        size = sizes[mesh_axis]
        wanted = [name for name, allowed in PARAMETER_RULES if allowed == mesh_axis]
        dims = [dim for name in wanted for dim, own in enumerate(names) if own == name]
        if size == 1 or not dims:
            continue
        if mesh_axis == "fsdp" and math.prod(shape) < min_fsdp_size:
            notes.append(f"fsdp: fewer than {min_fsdp_size} elements, repeated")
            continue
        fitting = [dim for dim in dims if parts[dim] % size == 0]
        if fitting:
            axes[fitting[0]].append(mesh_axis)
            parts[fitting[0]] //= size
        if not fitting or fitting[0] != dims[0]:
            where = f"{names[fitting[0]]} instead" if fitting else "repeated"
            notes.append(
                f"{mesh_axis}: {names[dims[0]]} {parts[dims[0]]} does not divide by {size}, {where}"
            )
    stored = [tuple(a) if len(a) > 1 else (a[0] if a else None) for a in axes]
    gathered = ["tensor" if "tensor" in a else None for a in axes]
    return ParameterPlan(
        spec=PartitionSpec(*stored),
        gathered=PartitionSpec(*gathered),
        dtype=dtype,
        note="; ".join(notes),
    )


@dataclasses.dataclass(frozen=True)
class MeshLayout(layers.Layout):
    """A network's activations on a mesh; an axis that does not divide stays whole.

    Attributes:
      mesh: the mesh.
      batch_axes: mesh axes that clips are spread over here; none inside a vmap over clips.
    """

    mesh: Mesh | None = None
    batch_axes: tuple[str, ...] = BATCH_AXES

    def fold(self, x: Array) -> Array:
        # Said on both sides: the partitioner on its own finds ways between the two that move
        # everything everywhere.
        return self.place(super().fold(self._constrain(x, self.batch_axes, (CONTEXT_AXIS,))))

    def unfold(self, x: Array, size: int) -> Array:
        unfolded = super().unfold(self.place(x), size)
        return self._constrain(unfolded, self.batch_axes, (CONTEXT_AXIS,))

    def place(self, x: Array) -> Array:
        # The block number is the slowest part of a folded axis.
        return self._constrain(x, (CONTEXT_AXIS, *self.batch_axes))

    def place_tokens(self, x: Array) -> Array:
        return self._constrain(x, self.batch_axes, (CONTEXT_AXIS,))

    def attend(self, q: Array, k: Array, v: Array, segments: Array | None = None) -> Array:
        """Where tokens are spread over `context`, by all-to-alls if the heads of a device can be
        spread too, else by a ring (`parallel.context`). Each device runs a kernel of its own."""
        devices, local = self.mesh.shape[CONTEXT_AXIS], super().attend
        if self.mesh.size == 1:
            return local(q, k, v, segments)
        spec = self._spec(q.shape, self.batch_axes, (CONTEXT_AXIS,), ("tensor",))
        heads = q.shape[2] // (self.mesh.shape["tensor"] if spec[2] else 1)
        if devices > 1 and spec[1] is not None:
            axis = {"axis": CONTEXT_AXIS}
            local = functools.partial(context.ring, **axis, devices=devices)
            if heads % devices == 0:
                local = functools.partial(context.ulysses, attention.attend_rows, **axis)
        arrays = (q, k, v) if segments is None else (q, k, v, segments)
        spread = jax.shard_map(
            lambda q, k, v, *segments: local(q, k, v, segments[0] if segments else None),
            mesh=self.mesh,
            in_specs=(spec, spec, spec, PartitionSpec(spec[0], spec[1]))[: len(arrays)],
            out_specs=spec,
            check_vma=False,
        )
        return spread(*arrays)

    def _constrain(self, x: Array, *axes: tuple[str, ...]) -> Array:
        place = NamedSharding(self.mesh, self._spec(x.shape, *axes))
        return jax.lax.with_sharding_constraint(x, place)

    def _spec(self, shape: Sequence[int], *axes: tuple[str, ...]) -> PartitionSpec:
        """For each axis of an array the mesh's axes over which it is spread, if they divide it."""
        parts = [math.prod(self.mesh.shape[axis] for axis in named) for named in axes]
        sizes = zip(axes, parts, shape, strict=False)
        return PartitionSpec(
            *(named if named and size % part == 0 else None for named, part, size in sizes)
        )


class _Stored(struct.PyTreeNode, nn.meta.AxisMetadata):
    """A parameter that is gathered when, and where, a layer asks for it.

    Inside a rematerialised block that is inside the block, so the gathered copy is not kept for the
    backward pass but gathered anew.
    """

    value: Array
    stored: NamedSharding = struct.field(pytree_node=False)
    gathered: NamedSharding = struct.field(pytree_node=False)
    dtype: DTypeLike = struct.field(pytree_node=False)

    def unbox(self) -> Array:
        return _gather(self.value, self.dtype, self.stored, self.gathered)

    def replace_boxed(self, val: Any) -> "_Stored":
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "_Stored":
        def longer(spec: list[Any]) -> list[Any]:
            return [*spec[:index], None, *spec[index:]]

        return self._with_specs(longer)

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "_Stored":
        # A scan takes one layer of stacked parameters, whose first axis no rule cuts.
        def shorter(spec: list[Any]) -> list[Any]:
            return [*spec[:index], *spec[index + 1 :]]

        return self._with_specs(shorter)

    def _with_specs(self, change: Callable[[list[Any]], list[Any]]) -> "_Stored":
        stored, gathered = (
            NamedSharding(place.mesh, PartitionSpec(*change(list(place.spec))))
            for place in (self.stored, self.gathered)
        )
        return self.replace(stored=stored, gathered=gathered)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _gather(
    value: Array, dtype: DTypeLike, stored: NamedSharding, gathered: NamedSharding
) -> Array:
    # The cast copy is pinned to the stored place first: what travels is then `dtype`, not float32.
    copy = jax.lax.with_sharding_constraint(value.astype(dtype), stored)
    return jax.lax.with_sharding_constraint(copy, gathered)


def _gather_forward(value, dtype, stored, gathered):
    return _gather(value, dtype, stored, gathered), None


def _gather_backward(dtype, stored, gathered, _, gradient):
    # Summed and cut up in one (reduce-scatter), where the transpose of the above would sum whole.
    return (jax.lax.with_sharding_constraint(gradient, stored).astype(jnp.float32),)


_gather.defvjp(_gather_forward, _gather_backward)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """How one stage lies on a mesh.

    Attributes:
      mesh: see `mesh.make_mesh`.
      parameters: a `ParameterPlan` for each parameter.
      offload: whether they are stored in the host's memory, as frozen parameters may be.
    """

    mesh: Mesh
    parameters: PyTree
    offload: bool = False

    @property
    def batch_shards(self) -> int:
        """The number of parts that a batch is cut into."""
        return math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)

    @property
    def everywhere(self) -> NamedSharding:
        """The same on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """Arrays whose first axis is the batch."""
        return NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))

    @property
    def params(self) -> PyTree:
        """Where each parameter is stored. Raises ValueError where `offload` cannot be."""
        places = jax.tree.map(
            lambda plan: NamedSharding(self.mesh, plan.spec), self.parameters, is_leaf=is_plan
        )
        return host_memory.places(places) if self.offload else places

    def opt_state(self, tx: Any, params: PyTree) -> PyTree:
        """Where an optimiser's state for `params` (arrays or shapes) is stored.

        Moments lie beside their parameters, counts everywhere. What is not trained is None, and
        what one part of an optimiser leaves to another stays masked. tx: an
        `optax.GradientTransformation`.
        """
        import optax  # only training needs it, and sampling starts sooner without

        def is_masked(leaf: Any) -> bool:
            return isinstance(leaf, optax.MaskedNode)

        places = jax.tree.map(
            lambda leaf, place: None if leaf is None else place,
            params,
            self.params,
            is_leaf=lambda leaf: leaf is None,
        )
        return optax.tree_utils.tree_map_params(
            tx,
            lambda leaf, place: leaf if is_masked(leaf) else place,
            jax.eval_shape(tx.init, params),
            places,
            transform_non_params=lambda _: self.everywhere,
            is_leaf=is_masked,
        )

    def layout(self, batch_axes: tuple[str, ...] = BATCH_AXES) -> MeshLayout:
        """The layout of activations; `batch_axes` as in `MeshLayout`."""
        return MeshLayout(
            blocks=self.mesh.shape[CONTEXT_AXIS], mesh=self.mesh, batch_axes=batch_axes
        )

    def gather(self, params: PyTree) -> PyTree:
        """`params` as a network takes them, each gathered where it is used (see `_Stored`)."""

        def box(plan: ParameterPlan, value: Array) -> Any:
            if plan.spec == plan.gathered:
                return value
            stored, gathered = (NamedSharding(self.mesh, s) for s in (plan.spec, plan.gathered))
            return _Stored(value=value, stored=stored, gathered=gathered, dtype=plan.dtype)

        return jax.tree.map(box, self.parameters, params, is_leaf=is_plan)

    def rows(self, batch_size: int) -> tuple[int, ...]:
        """The rows of a global batch that this process's devices hold, in order.

        Several processes may hold the same row, where tensor or context span processes. Raises
        MeshError where the batch does not divide.
        """
        self.check_batch_size("train.batch_size", batch_size)
        held = self.batch.addressable_devices_indices_map((batch_size,)).values()
        return tuple(sorted({row for (cut,) in held for row in range(*cut.indices(batch_size))}))

    def check_batch_size(self, field: str, batch_size: int) -> None:
        """Raises MeshError, naming `field`, where a batch cannot be cut evenly."""
        if batch_size % self.batch_shards:
            sizes = " x ".join(f"mesh.{a} {self.mesh.shape[a]}" for a in BATCH_AXES)
            raise MeshError(
                f"{field} = {batch_size}: must divide by {self.batch_shards}, the number of parts "
                f"that it is cut into ({sizes})"
            )

    def put_batch(self, batch: PyTree, batch_size: int) -> PyTree:
        """This process's `rows(batch_size)` of a batch, on the host, as arrays of all of it."""
        place_of = {row: place for place, row in enumerate(self.rows(batch_size))}

        def put(leaf: np.ndarray) -> Array:
            def part(index: tuple[slice, ...]) -> np.ndarray:
                start, stop, _ = index[0].indices(batch_size)
                return leaf[place_of[start] : place_of[start] + stop - start]

            shape = (batch_size, *leaf.shape[1:])
            return jax.make_array_from_callback(shape, self.batch, part)

        return jax.tree.map(put, batch)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Frozen:
    """Parameters that a loss uses and that are not trained: a teacher, an autoencoder, an encoder.

    They are in no gradient, no optimiser state and no checkpoint.

    Attributes:
      params: laid out by `plan`.
      plan: their own.
    """

    params: PyTree
    plan: Plan


def make_plan(
    stage,
    config: Mapping[str, Any],
    devices: Sequence[jax.Device] | None = None,
    shapes: PyTree | None = None,
) -> Plan:
    """The plan of `stage` on the mesh of `config` (a configuration's `mesh`).

    shapes: what `stage.abstract_params` gives, where that is known. Raises MeshError.
    """
    mesh = make_mesh(config, devices)
    least = config.get("min_fsdp_size", MIN_FSDP_SIZE)
    shapes = stage.abstract_params() if shapes is None else shapes
    return Plan(mesh=mesh, parameters=plan_shapes(shapes, dict(mesh.shape), least))


def plan_parameters(stage, sizes: Mapping[str, int], min_fsdp_size: int = MIN_FSDP_SIZE) -> PyTree:
    """A `ParameterPlan` for each parameter of `stage` on a mesh with axes of `sizes`."""
    return plan_shapes(stage.abstract_params(), sizes, min_fsdp_size)


def plan_shapes(shapes: PyTree, sizes: Mapping[str, int], min_fsdp_size: int) -> PyTree:
    """`plan_parameters` of what a stage's `abstract_params` gives."""
    return jax.tree.map(
        lambda named: plan_parameter(
            named.value.shape, named.names, named.dtype, sizes, min_fsdp_size
        ),
        shapes,
        is_leaf=lambda leaf: isinstance(leaf, layers.Named),
    )


def compiler_options(mesh: Mesh) -> dict[str, str] | None:
    """Options of the compiler that a sharded program wants on the mesh's devices."""
    if mesh.devices.flat[0].platform != "tpu":
        return None
    # Otherwise convolutions over gathered kernels become loops that pass the kernel around in
    # hundreds of permutes.
    return {"xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000"}


def axes_by_dimension(spec: PartitionSpec) -> list[tuple[str, ...]]:
    """For each dimension the mesh axes that cut it."""
    return [(part,) if isinstance(part, str) else tuple(part or ()) for part in spec]


def is_plan(leaf: Any) -> bool:
    """Whether a leaf is a `ParameterPlan`, for jax.tree functions."""
    return isinstance(leaf, ParameterPlan)
