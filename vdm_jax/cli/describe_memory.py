"""`vdm describe --memory`: whether sampling and training fit this device, and what would."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from vdm_jax.cli import common, compiling

if TYPE_CHECKING:
    import jax

    from vdm_jax.training import step

GIB = 2**30
_ONE = {"data": 1, "fsdp": 1, "tensor": 1, "context": 1}
_ROOM = 1.5  # times the estimate: where less is free, it says that it may not fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Need:
    """Bytes that one device takes, estimated from shapes.

    Attributes:
      what: train or sample.
      arguments: parameters, frozen ones, optimiser state and batch; without what lies in the
        host's memory.
      activations: the most that lives beside them.
      changes: fields of the configuration that were changed.
    """

    what: str
    arguments: int
    activations: int
    changes: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def total(self) -> int:
        return self.arguments + self.activations

    def verdict(self, capacity: int) -> str:
        """fits, may not fit (the estimate is no bound), or does not fit."""
        if self.total * _ROOM <= capacity:
            return "fits"
        return "may not fit" if self.total <= capacity else "does not fit"


def run(named: str, overrides: Mapping[str, str], as_json: bool) -> int:
    """Prints the report of a configuration. Exit status 0 where both fit, else 2."""
    common.setup("any", quiet=True)

    import jax

    device = jax.devices()[0]
    limit = capacity(device)
    report: dict = {"config": named, "device": device.device_kind, "capacity": limit, "needs": []}
    for what in ("sample", "train"):
        try:
            found = need(named, overrides, what)
        except ValueError as error:
            report["needs"].append({"what": what, "error": str(error)})
            continue
        row = {**dataclasses.asdict(found), "total": found.total}
        row |= {"verdict": found.verdict(limit), "try": []}
        before = found.total
        for one in smaller(named, overrides, what, limit) if row["verdict"] != "fits" else ():
            freed = {"total": one.total, "frees": before - one.total}
            row["try"].append(
                {"changes": dict(one.changes), **freed, "verdict": one.verdict(limit)}
            )
            before = one.total
        report["needs"].append(row)
    print(json.dumps(report, indent=2) if as_json else _text(report))
    return 2 if any(row.get("verdict") == "does not fit" for row in report["needs"]) else 0


def capacity(device: "jax.Device") -> int:
    """Bytes that a program can take of a device; of a CPU, what is free of the machine's memory."""
    stats = device.memory_stats() or {}
    if limit := stats.get("bytes_limit"):
        return int(limit)
    from vdm_jax.parallel import chips

    if device.platform != "cpu" and (chip := chips.chip_of_device(device.device_kind)) is not None:
        return chip.hbm_bytes
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":") for line in file)
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError):
        import os

        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def need(named: str, overrides: Mapping[str, str], what: str) -> Need:
    """What one device takes for an update (train) or for a batch of samples (sample)."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp

    from vdm_jax import config as config_lib
    from vdm_jax import systems
    from vdm_jax.parallel import liveness
    from vdm_jax.stage import sampler as sampling

    config = config_lib.load_config(named, overrides)
    if what == "train":
        update, arguments = training(config)
        program = update.compiled.trace(*arguments, update.frozen).jaxpr
        # The new state takes the place of the old one.
        return Need(
            what=what,
            arguments=_device_bytes([arguments, update.frozen]),
            activations=liveness.peak_bytes(program, len(jax.tree.leaves(arguments[0]))),
            changes=overrides,
        )
    stage = systems.build(config)
    parts = systems.abstract_frozen(config, _ONE, jax.devices()[:1])
    frozen = {name: part.params for name, part in parts.items()}
    sampler = sampling.Sampler.from_config(stage, config.sample, frozen=frozen)
    params = nn.meta.unbox(stage.abstract_params())
    size = sampler.batch_size
    key = jax.eval_shape(lambda: jax.random.key(0))
    indices = jax.ShapeDtypeStruct((size,), jnp.uint32)
    inputs = (params, frozen, key, indices, stage.abstract_inputs(size), None, None)
    program = sampler.compiled.trace(*inputs).jaxpr
    return Need(
        what=what,
        arguments=_device_bytes(inputs),
        activations=liveness.peak_bytes(program),
        changes=overrides,
    )


def training(config) -> "tuple[step.TrainStep, tuple[Any, Any]]":
    """The update of a configuration on one device, and the shapes of its state and batch."""
    import jax

    from vdm_jax import systems
    from vdm_jax.parallel import sharding
    from vdm_jax.training import optimizer, state, step

    stage, device = systems.build(config), jax.devices()[:1]
    plan = sharding.make_plan(stage, _ONE, device)
    tx = optimizer.make_optimizer(config.train, stage.abstract_params())
    frozen = systems.abstract_frozen(config, _ONE, device)
    update = step.make_train_step(stage, tx, config, plan, frozen)
    batch = stage.abstract_batch(config.train.batch_size, config.data.image_frames)
    return update, (state.abstract_state(stage, tx, plan), batch)


def _device_bytes(tree: Any) -> int:
    """The bytes of the arrays of a tree that do not lie in the host's memory."""
    import jax

    from vdm_jax.parallel import host_memory, liveness

    return liveness.array_bytes(
        [leaf for leaf in jax.tree.leaves(tree) if not host_memory.is_stored(leaf)]
    )


def smaller(named: str, overrides: Mapping[str, str], what: str, limit: int) -> Iterator[Need]:
    """Changes that save memory, each on top of those before it, until one fits."""
    added: dict[str, str] = {}
    for changes in _changes(named, dict(overrides), what):
        added |= changes
        found = dataclasses.replace(need(named, {**overrides, **added}, what), changes=dict(added))
        yield found
        if found.verdict(limit) == "fits":
            return


def _changes(named: str, overrides: dict[str, str], what: str) -> list[dict[str, str]]:
    import jax

    from vdm_jax import config as config_lib

    config = config_lib.load_config(named, overrides)
    changes = []
    if config.model.get("dtype") == "float32":
        changes.append({"model.dtype": "bfloat16"})
    if what == "sample" and config.model.get("decode_frames", 1) > 1:
        changes.append({"model.decode_frames": "1"})
    request = compiling.Request(config=named, overrides=overrides, topology="", what=what)
    further = compiling.memory_changes(request, devices=1)
    # First, since the numbers stay the same, bit for bit. A CPU's memory is the host's already.
    exact = [change for change in further if "mesh.offload" in change]
    others = [change for change in further if change not in exact]
    return [*([] if jax.devices()[0].platform == "cpu" else exact), *changes, *others]


def _text(report: dict) -> str:
    lines = [
        f"{report['config']} on {report['device']}, {_gib(report['capacity'])}; estimated from "
        "shapes, without compiling"
    ]
    for row in report["needs"]:
        if "error" in row:
            lines.append(f"{row['what']}: {row['error']}")
            continue
        lines.append(
            f"{row['what']}: {row['verdict']}: {_gib(row['total'])}, of which "
            f"{_gib(row['arguments'])} parameters, state and batch, {_gib(row['activations'])} "
            "activations"
        )
        for one in row["try"]:
            flags = " ".join(f"--config.{name}={value}" for name, value in one["changes"].items())
            freed = f"{_gib(one['total'])}, {_gib(one['frees'])} less"
            lines.append(f"  {one['verdict']} with {freed}: {flags}")
        if row["verdict"] != "fits" and not any(one["verdict"] == "fits" for one in row["try"]):
            lines.append(
                "  more devices divide parameters and state: --config.mesh.fsdp=-1 (vdm describe "
                "--sharding, vdm compile)"
            )
    return "\n".join(lines)


def _gib(size: float) -> str:
    return f"{size / GIB:.2f} GiB"
