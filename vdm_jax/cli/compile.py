"""Will it fit, and how fast can it be? Compiles for a pod that is not here.

    python -m launch.compile --config=configs/vdm/t2v_large.py --topology=v5p:4x4x4 [--mesh=fsdp=64]

Compiles the real training update (or, with --what, the real sampler) for every device of the
topology with the compiler that runs there, and reports memory a device against its capacity,
collectives, and the least time that a step can take by the peak of the device, its memory and its
network. What does not fit is said, with changes that were compiled and do. No accelerator is used:
TPUs need the package libtpu (pip install -e ".[compile]").

    python -m launch.compile --pages                # writes docs/pods.md anew

Results are kept by the hash of the lowered program in ~/.cache/vdm_jax/compile.
"""

import dataclasses
import gc
import hashlib
import json
import sys
import time
from pathlib import Path

from vdm_jax.cli import common

CACHE = Path("~/.cache/vdm_jax/compile")
# XLA's levels of effort, as numbers of its option.
EFFORT = {"0": 9, "1": 19, "2": 29, "3": 39}


def main(arguments: list[str]) -> int:
    parser = common.parser("python -m launch.compile", __doc__)
    parser.add_argument("--config", metavar="FILE", help="such as configs/vdm/t2v_large.py")
    parser.add_argument(
        "--topology", metavar="NAME", help="v5e:16x16, v5p:4x4x4, v6e:16x16, v4:4x4x4, ..."
    )
    parser.add_argument(
        "--slices", type=common.positive, default=1, metavar="N", help="of that shape (default 1)"
    )
    parser.add_argument(
        "--what",
        default="train",
        choices=("train", "sample", "guided"),
        help="train (default); sample; guided: sampling with known frames and gradient guidance",
    )
    parser.add_argument(
        "--mesh",
        metavar="AXES",
        help="sizes of the mesh's axes, for example fsdp=64 or data=-1,fsdp=16 "
        "(default: the configuration's)",
    )
    parser.add_argument(
        "--batch", type=common.positive, metavar="N", help="clips (default: the configuration's)"
    )
    parser.add_argument(
        "--remat", choices=("none", "dots", "full"), help="default: the configuration's"
    )
    parser.add_argument(
        "--effort",
        default="0",
        choices=tuple(EFFORT),
        help="of the compiler; 0 (default) is several times faster and uses no less memory",
    )
    parser.add_argument(
        "--tries",
        type=int,
        default=3,
        metavar="N",
        help="changes to compile where it does not fit (default 3)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON only")
    parser.add_argument("--no_cache", action="store_true", help="compile anew")
    parser.add_argument("--pages", action="store_true", help="write docs/pods.md")

    from vdm_jax import config as config_lib

    overrides, arguments = config_lib.split_overrides(arguments)
    options = parser.parse_args(arguments)
    if options.pages:
        from vdm_jax.cli import pods

        return pods.write(effort=options.effort, use_cache=not options.no_cache)
    if not options.config or not options.topology:
        parser.error("--config and --topology are needed")
    overrides |= _as_overrides(options)
    request = Request(
        config=options.config,
        overrides=overrides,
        topology=options.topology,
        slices=options.slices,
        what=options.what,
        effort=options.effort,
    )
    report = run(request, tries=options.tries, use_cache=not options.no_cache, quiet=options.json)
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0 if report["fits"] else 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be compiled for what."""

    config: str
    topology: str
    overrides: dict[str, str] = dataclasses.field(default_factory=dict)
    slices: int = 1
    what: str = "train"
    effort: str = "0"


def run(request: Request, *, tries: int = 3, use_cache: bool = True, quiet: bool = False) -> dict:
    """Compiles `request`, and where it does not fit, up to `tries` changes of it.

    Returns {"fits", "estimate" or "error", "needed", "capacity", "suggestions": what was tried, in
    order, each with its changes and whether it fits, ...}. Raises ConfigError, ValueError.
    """
    from vdm_jax.parallel import topology

    target = topology.parse_topology(request.topology, slices=request.slices)
    topology.prepare_environment(target)
    report = _compile(request, target, use_cache, quiet)
    report["suggestions"] = []
    if report["fits"]:
        return report
    tried = request
    for changes in _changes(request, target.num_devices):
        if len(report["suggestions"]) == tries:
            break
        tried = dataclasses.replace(tried, overrides=tried.overrides | changes)
        attempt = _compile(tried, target, use_cache, quiet)
        made = {k: v for k, v in tried.overrides.items() if request.overrides.get(k) != v}
        report["suggestions"].append({"changes": made, **attempt})
        if attempt["fits"]:
            break
    return report


def _changes(request: Request, devices: int) -> list[dict[str, str]]:
    """What saves memory, cheapest first; each is tried on top of those before it."""
    from vdm_jax import config as config_lib

    config = config_lib.load_config(request.config, request.overrides)
    changes = []
    shards = config.train.batch_size if request.what == "train" else config.sample.batch_size
    if config.mesh.fsdp != -1 and config.mesh.fsdp < devices and shards % devices == 0:
        changes.append({"mesh.fsdp": "-1", "mesh.data": "1"})
    if request.what != "sample" and config.model.remat != "full":
        changes.append({"model.remat": "full"})
    if request.what == "train":
        accumulate = config.train.accumulate
        while shards // (2 * accumulate) >= devices:
            accumulate *= 2
            changes.append({"train.accumulate": str(accumulate)})
        changes.append({"train.moment_dtype": "bfloat16"})
    while shards // 2 >= devices and shards % 2 == 0:
        shards //= 2
        if request.what == "train":
            # A microbatch has a clip for each device already.
            accumulate = str(max(shards // devices, 1))
            changes.append({"train.batch_size": str(shards), "train.accumulate": accumulate})
        else:
            changes.append({"sample.batch_size": str(shards)})
    return changes


def _as_overrides(options) -> dict[str, str]:
    """The flags that are fields of the configuration."""
    from vdm_jax.parallel import mesh

    overrides = {}
    if options.mesh:
        overrides |= {f"mesh.{k}": str(v) for k, v in mesh.parse_mesh(options.mesh).items()}
    if options.batch:
        section = "train" if options.what == "train" else "sample"
        overrides[f"{section}.batch_size"] = str(options.batch)
    if options.remat:
        overrides["model.remat"] = options.remat
    return overrides


def _compile(request: Request, target, use_cache: bool, quiet: bool) -> dict:
    import jax
    from rich.console import Console

    from vdm_jax import config as config_lib
    from vdm_jax.parallel import estimate

    config = config_lib.load_config(request.config, request.overrides)
    console = Console(stderr=True, quiet=quiet)
    changed = ", ".join(f"{name}={value}" for name, value in request.overrides.items())
    title = f"{request.config}{' with ' + changed if changed else ''} for {target}"
    with console.status(f"tracing {title}"):
        lowered, figures = lower(config, target, request.what)
    options = {"optimization_level": EFFORT[request.effort]}
    if not target.is_tpu:
        # Tiles are chosen by trying them, which takes the GPU; without it some cannot be chosen.
        options = {"xla_gpu_enable_triton_gemm": False}
    digest = hashlib.sha256()
    for part in (str(target), jax.__version__, _libtpu_version(), str(options), lowered.as_text()):
        digest.update(part.encode())
    cached = CACHE.expanduser() / f"{digest.hexdigest()[:32]}.json"
    report = {
        "config": request.config,
        "overrides": request.overrides,
        "topology": request.topology,
        "slices": request.slices,
        "what": request.what,
        "effort": request.effort,
        "parameters": figures["parameters"],
        "batch": figures["batch"],
    }
    if use_cache and cached.is_file():
        kept = json.loads(cached.read_text())
        if kept["fits"]:
            kept["estimate"] = estimate.Estimate.from_dict(kept["estimate"]).to_dict()
        return report | kept
    started = time.monotonic()
    compiled = None
    try:
        with console.status(f"compiling {title}: minutes"):
            compiled = lowered.compile(compiler_options=options)
        seconds = time.monotonic() - started
        found = estimate.estimate(
            compiled,
            target.chip,
            devices=target.num_devices,
            compile_seconds=seconds,
            **figures,
        )
        result = {"fits": True, "estimate": found.to_dict()}
    except estimate.DoesNotFitError as error:
        result = _too_large(error)
    except jax.errors.JaxRuntimeError as error:
        told = estimate.out_of_memory(str(error), target.chip)
        if told is None:
            raise
        result = _too_large(told)
    # One program after the other: each holds gigabytes.
    lowered = compiled = None
    jax.clear_caches()
    gc.collect()
    console.print(f"compiled {title} in {time.monotonic() - started:.0f} s", highlight=False)
    cached.parent.mkdir(parents=True, exist_ok=True)
    cached.write_text(json.dumps(result))
    return report | result


def lower(config, target, what: str):
    """The program of `config` lowered for `target`, and the figures that `estimate` wants of it."""
    import jax

    from vdm_jax import systems
    from vdm_jax.parallel import sharding
    from vdm_jax.stage import sampler as sampling
    from vdm_jax.training import optimizer, state, step

    stage = systems.build(config)
    plan = sharding.make_plan(stage, config.mesh, target.devices())
    forward = sum(level.flops for level in stage.cost(_images(config) if what == "train" else 0))
    params = jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        jax.eval_shape(stage.init, jax.random.key(0)),
        plan.params,
    )
    figures = {"parameters": state.count_parameters(params)}
    if what == "train":
        batch_size = config.train.batch_size
        tx = optimizer.make_optimizer(config.train)
        update = step.make_train_step(stage, tx, config, plan)
        batch = stage.abstract_batch(batch_size, _images(config))
        lowered = update.lower(state.abstract_state(stage, tx, plan), _at(batch, plan.batch))
        # Forward, twice that backward; with everything computed again, forward once more.
        again = config.model.remat == "full"
        return lowered, figures | {
            "batch": batch_size,
            "model_flops": 3 * forward * batch_size,
            "hardware_flops": (3 + again) * forward * batch_size,
            "repeats": config.train.accumulate,
        }
    guided = what == "guided"
    sampler = sampling.Sampler.from_config(stage, config.sample, plan=plan)
    inputs = sampler.abstract_inputs(frames_known=guided)
    lowered = sampler.compiled.lower(params, *inputs)
    size = inputs[1].shape[0]
    flops = forward * size * (1 if sampler.guidance == 1 else 2)
    # The gradient by z costs as much as the forward pass: parameters have none.
    again = guided and config.model.remat == "full"
    return lowered, figures | {
        "batch": size,
        "model_flops": flops * (1 + guided),
        "hardware_flops": flops * (1 + guided + again),
        "steps": sampler.steps,
    }


def _images(config) -> int:
    return config.data.image_frames


def _at(tree, place):
    import jax

    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), tree
    )


def _too_large(error) -> dict:
    return {
        "fits": False,
        "error": str(error),
        "needed": error.needed,
        "capacity": error.capacity,
    }


def _libtpu_version() -> str:
    import importlib.metadata

    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return ""


def _print(report: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 100, highlight=False)
    target = f"{report['topology']}" + (f" x {report['slices']}" if report["slices"] > 1 else "")
    console.print(
        f"{report['config']} on {target}: {report['parameters']:,} parameters, "
        f"{report['batch']} clips a step ({report['what']})"
    )
    if not report["fits"]:
        console.print(report["error"], style="bold red")
        if not report["suggestions"]:
            console.print("no change of mesh, remat, accumulation or batch is left to try")
        for attempt in report["suggestions"]:
            flags = " ".join(
                f"--config.{name}={value}" for name, value in attempt["changes"].items()
            )
            if attempt["fits"]:
                found = attempt["estimate"]
                console.print(f"try: {flags}", style="bold", soft_wrap=True)
                console.print(
                    f"     fits (compiled): {_gib(found['memory'])} of {_gib(found['capacity'])} a "
                    f"device, at least {_seconds(found['step_seconds'])} a step"
                )
            else:
                console.print(f"not enough: {flags}: {attempt['error']}", soft_wrap=True)
        return
    found = report["estimate"]
    traffic = found["memory_traffic"]
    per = "step" if report["what"] == "train" else "denoising step"
    table = Table(show_header=False)
    rows = [
        ("devices", f"{found['devices']}"),
        ("model operations", f"{found['model_flops'] / 1e12:,.2f} TFLOP a {per}, analytic"),
        ("operations of a device", f"{found['flops'] / 1e12:,.2f} TFLOP a {per}"),
        ("memory of a device", f"{_gib(found['memory'])} of {_gib(found['capacity'])}"),
        ("  arguments", _gib(found["arguments"])),
        ("  temporaries", _gib(found["temporaries"])),
        ("roofline: compute", _seconds(found["compute_seconds"])),
        ("roofline: memory", _seconds(found["memory_seconds"]) if traffic else "not told for GPUs"),
        ("roofline: network", _seconds(found["network_seconds"])),
        (f"a {per} takes", f"{_seconds(found['step_seconds'])} or more: {found['bound']} bound"),
        ("MFU at most", f"{found['mfu']:.0%}"),
    ]
    if report["what"] == "train":
        rows.append(("clips a second at most", f"{found['clips_per_second']:,.1f}"))
    rows.append(("compiled in", f"{found['compile_seconds']:.0f} s"))
    for row in rows:
        table.add_row(*row)
    console.print(table)
    collectives = Table(title="collectives of the whole program, of a device")
    for name in ("kind", "devices", "network", "count", "GiB", "sent, GiB"):
        collectives.add_column(name, justify="left" if name == "kind" else "right")
    for row in found["collectives"]:
        collectives.add_row(
            row["kind"],
            str(row["group_size"]),
            row["network"],
            str(row["count"]),
            f"{row['bytes'] / 2**30:.3f}",
            f"{row['wire_bytes'] / 2**30:.3f}",
        )
    console.print(collectives)


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"
