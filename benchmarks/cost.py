"""Time and memory of a training step's gradient as work grows: the page docs/cost.md.

    python -m benchmarks.cost --json=FILE     # measures, writes FILE, prints the page's tables
    python -m benchmarks.cost --json=FILE --only=vdm/moving_shapes:frames

Time is the processor's own (all threads), so that other work on the machine hardly counts. Memory
is what the compiled program asks for (`memory_analysis`): arguments, results and temporaries. Both
are of the gradient of a network's mean square by its parameters: a training step without data and
optimiser. Each series has a slope on logarithmic axes, beside that of the operations (`stage.cost`)
and of the number of features.
"""

import argparse
import dataclasses
import functools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

DEVICES = 4
ROUNDS = 3
# Overrides of a configuration, for each value of what grows. The first is the configuration itself.
Points = dict[float, dict[str, Any]]
# dit/tiny takes latents of the published autoencoder's default form, 16 channels: no weights.
_DIT = {
    "model.autoencoder": "",
    "model.transformer.in_channels": 16,
    "model.transformer.out_channels": 16,
    "data.num_frames": 64,
    "data.image_size": 256,
    "data.image_width": 256,
    "data.part": (13, 64, 64),
}


def _unet(width: int) -> dict[str, Any]:
    return {"model.unet.block_out_channels": (48 * width, 112 * width)}


def _transformer(width: int) -> dict[str, Any]:
    return {
        "model.transformer.num_attention_heads": 6 * width,
        "model.transformer.ffn_dim": 768 * width,
    }


SERIES: dict[str, dict[str, Points]] = {
    "vdm/moving_shapes": {
        "frames": {n: {"data.num_frames": n} for n in (8, 16, 32)},
        "side": {n: {"data.image_size": n} for n in (16, 32, 64)},
        "channels": {n: {"model.channels": n} for n in (64, 128, 256)},
        "batch": {n: {"train.batch_size": n} for n in (4, 8, 16)},
    },
    "latent_image/scenes": {
        "side": {n: {"data.image_size": n} for n in (64, 128, 256)},
        "channels": {n: _unet(n) for n in (1, 2, 4)},
        "batch": {n: {"train.batch_size": n} for n in (4, 8, 16)},
    },
    "dit/tiny": {
        "frames": {4 * n: {"data.part": (16 * n - 3, 64, 64)} for n in (1, 2, 4)},
        "side": {n: {"data.part": (13, n, n)} for n in (64, 128, 256)},
        "channels": {n: _transformer(n) for n in (1, 2, 4)},
        "batch": {n: {"train.batch_size": n} for n in (4, 8, 16)},
    },
}
BATCH = 4  # where the batch does not grow
STEPS = (16, 32, 64)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """A measured point of a series.

    Attributes:
      value: of what grows.
      seconds: of the processor for one call, the median.
      mebibytes: that the program needs on one device.
      operations: analytic floating-point operations.
      features: the number of values that each layer holds, up to a factor.
    """

    value: float
    seconds: float
    mebibytes: float
    operations: float
    features: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--only", default="", metavar="NETWORK[:AXIS]", help="some series")
    options = parser.parse_args()
    count = f"--xla_force_host_platform_device_count={DEVICES}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {count}".strip()
    from vdm_jax.cli import common

    common.setup("cpu", quiet=True)
    found: dict[str, list[dict[str, float]]] = {}
    if options.json.exists():
        found = json.loads(options.json.read_text())
    for name, measure in _series().items():
        if not name.startswith(options.only) or name in found:
            continue
        started = time.process_time()
        points = measure()
        print(f"{row(name, points)} <!-- {time.process_time() - started:.0f} s -->", flush=True)
        found[name] = [dataclasses.asdict(point) for point in points]
        options.json.write_text(json.dumps(found, indent=1))
    print(table({name: [Point(**one) for one in points] for name, points in found.items()}))


def _series() -> dict[str, Callable[[], list[Point]]]:
    """What measures each series, by its name."""
    measures: dict[str, Callable[[], list[Point]]] = {}
    for network, axes in SERIES.items():
        for axis, points in axes.items():
            measures[f"{network}:{axis}"] = functools.partial(_grown, network, points)
    measures["vdm/moving_shapes:steps"] = _steps
    measures["vdm/moving_shapes:devices"] = _devices
    return measures


def _grown(network: str, points: Points) -> list[Point]:
    return [_gradient(network, value, tuple(changes.items())) for value, changes in points.items()]


def _gradient(network: str, value: float, changes: tuple[tuple[str, Any], ...]) -> Point:
    stage, batch = _stage(network, dict(changes))
    arguments = _arguments(stage, batch)
    return _point(value, _compile(stage, arguments), arguments, stage, batch)


def _stage(network: str, changes: Mapping[str, Any]) -> tuple[Any, int]:
    """The stage of a configuration with changes, and the batch size."""
    from vdm_jax import config as config_lib
    from vdm_jax import systems

    config = config_lib.load_config(network, {}).copy_and_resolve_references()
    changes = {**(_DIT if network == "dit/tiny" else {}), **changes}
    with config.unlocked():
        for name, value in changes.items():
            *sections, field = name.split(".")
            functools.reduce(lambda part, key: part[key], sections, config)[field] = value
    return systems.build(config.lock()), changes.get("train.batch_size", BATCH)


def _arguments(stage: Any, batch: int) -> tuple[Any, ...]:
    """Parameters, z, log-SNR and condition, drawn on the host."""
    import flax.linen as nn
    import jax
    import numpy as np

    rng = np.random.default_rng(0)

    def draw(leaf: Any) -> Any:
        return (rng.normal(size=leaf.shape) * 0.05).astype(leaf.dtype)

    params = jax.tree.map(draw, nn.meta.unbox(stage.abstract_params()))
    cond = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), stage.cond_shapes(batch, 0))
    z = rng.normal(size=(batch, *stage.z_shape)).astype(np.float32)
    return params, z, np.zeros(batch, np.float32), cond


def _compile(stage: Any, arguments: tuple[Any, ...]) -> Any:
    import jax
    import jax.numpy as jnp

    def loss(params: Any, z: Any, logsnr: Any, cond: Any) -> Any:
        return jnp.square(stage.network.apply({"params": params}, z, logsnr, cond)).mean()

    # LLVM's effort takes half of the compile time and changes no product or convolution.
    quick = {"xla_backend_optimization_level": "1"}
    return jax.jit(jax.grad(loss)).lower(*arguments).compile(compiler_options=quick)


def _point(value: float, program: Any, arguments: Any, stage: Any, batch: int) -> Point:
    import jax

    placed = jax.device_put(arguments, program.input_shardings[0])
    seconds = []
    for _ in range(1 + ROUNDS):
        started = time.process_time()
        jax.block_until_ready(program(*placed))
        seconds.append(time.process_time() - started)
    width = stage.cost()[-1].channels  # the first is what embeds the noise level
    return Point(
        value=value,
        seconds=statistics.median(seconds[1:]),  # the first maps its memory
        mebibytes=_bytes(program) / 2**20,
        operations=float(stage.train_flops() * batch),
        features=float(batch * math.prod(stage.z_shape[:3]) * max(width, 1)),
    )


def _bytes(program: Any) -> int:
    memory = program.memory_analysis()
    parts = ("argument_size_in_bytes", "output_size_in_bytes", "temp_size_in_bytes")
    return sum(getattr(memory, part) for part in parts) - memory.alias_size_in_bytes


def _steps() -> list[Point]:
    """Sampling one clip of the shipped model in more and more steps."""
    import jax
    import numpy as np

    import vdm_jax

    model, points = vdm_jax.load("moving_shapes"), []
    forward = model.stage.train_flops() / 3
    for steps in STEPS:
        sampler = model.sampler(steps=steps)
        cond = model.stage.encode(["a red circle moving left"], negatives=None, inputs={})
        rest = (np.zeros(1, np.uint32), cond, None, None)
        arguments = (model.params, sampler.frozen, jax.random.key(0), *rest)
        program = sampler.compiled.lower(*arguments).compile()
        guided = 2 * steps * forward  # a batch of two in each evaluation
        point = _point(steps, program, arguments, model.stage, 1)
        points.append(dataclasses.replace(point, operations=float(guided), features=1.0))
    return points


def _devices() -> list[Point]:
    """A fixed batch over more and more virtual devices, which share this machine's cores."""
    import jax
    from jax.sharding import NamedSharding, PartitionSpec

    stage, batch = _stage("vdm/moving_shapes", {"train.batch_size": 16})
    arguments, points = _arguments(stage, batch), []
    for count in (1, 2, DEVICES):
        mesh = jax.sharding.Mesh(jax.devices()[:count], ("data",))
        whole = NamedSharding(mesh, PartitionSpec())
        cut = NamedSharding(mesh, PartitionSpec("data"))
        placed = (jax.device_put(arguments[0], whole), *jax.device_put(arguments[1:], cut))
        point = _point(count, _compile(stage, placed), placed, stage, batch)
        points.append(dataclasses.replace(point, features=point.features / count))
    return points


def slope(points: list[Point], field: str) -> float:
    """The exponent of a field: least squares on logarithmic axes."""
    x = [math.log(point.value) for point in points]
    y = [math.log(getattr(point, field)) for point in points]
    mean = statistics.fmean(x), statistics.fmean(y)
    along = sum((a - mean[0]) * (b - mean[1]) for a, b in zip(x, y, strict=True))
    return along / sum((a - mean[0]) ** 2 for a in x)


def row(name: str, points: list[Point]) -> str:
    """A row of the table."""
    network, axis = name.split(":")
    values = ", ".join(f"{point.value:g}" for point in points)
    seconds = ", ".join(f"{1e3 * point.seconds:,.0f}" for point in points)
    memory = ", ".join(f"{point.mebibytes:,.0f}" for point in points)
    exponents = [slope(points, field) for field in ("seconds", "operations")]
    exponents += [slope(points, field) for field in ("mebibytes", "features")]
    shown = " | ".join(f"{exponent:.2f}".replace("-0.00", "0.00") for exponent in exponents)
    return f"| `{network}` | {axis} | {values} | {seconds} | {memory} | {shown} |"


def table(series: Mapping[str, list[Point]]) -> str:
    """All series, a row each."""
    columns = "network | what grows | values | CPU ms | MiB | time | operations | memory | features"
    head = [f"| {columns} |", "|---|---|---|---|---|--:|--:|--:|--:|"]
    return "\n".join([*head, *map(row, series, series.values())])


if __name__ == "__main__":
    main()
