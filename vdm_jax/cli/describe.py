"""Shows the network of a configuration, or lists configurations and models.

    vdm describe
    vdm describe --config=vdm/t2v_large [--json] [--config.FIELD=VALUE ...]

The first lists the configurations, and the models and cascades that ship with the package. The
second shows parameters and a table of levels, from shapes alone: nothing is allocated or compiled,
so a network of billions takes seconds. FLOPs count one evaluation of one video.

With --sharding it lists where every parameter lives on the mesh of the configuration, how many
bytes of it each device holds, and which parameters could not be sharded as the rules say.
--devices=N is the number of devices (default 64), --slices=N the number of slices.

With --memory it says whether sampling and training fit the memory of this device, estimated from
shapes within a factor of 2 and without compiling, and which changes would make them fit. vdm
compile measures the compiled program.
"""

import collections
import dataclasses
import functools
import json
import math
import sys

from vdm_jax.cli import describe_memory, parsing


def main(arguments: list[str]) -> int:
    parser = parsing.parser("vdm describe", __doc__)
    parser.add_argument("--config", metavar="CONFIG", help="a configuration: a name or a file")
    parser.add_argument("--json", action="store_true", help="print JSON, with key `parameters`")
    parser.add_argument("--sharding", action="store_true", help="list where parameters live")
    parser.add_argument(
        "--memory", action="store_true", help="say whether sampling and training fit this device"
    )
    number = functools.partial(parser.add_argument, type=parsing.positive, metavar="N")
    number("--devices", default=64, help="with --sharding: devices of the mesh (default 64)")
    number("--slices", default=1, help="with --sharding: slices of the mesh (default 1)")

    from vdm_jax import config as config_lib

    overrides, arguments = config_lib.split_overrides(arguments)
    options = parser.parse_args(arguments)
    if not options.config:
        if overrides or options.sharding or options.memory:
            parser.error("--config is missing")
        report = inventory()
        print(json.dumps(report, indent=2) if options.json else _listed(report))
        return 0
    config = config_lib.load_config(options.config, overrides)
    if "stages" in config:
        parser.error(
            f"--config={options.config} is a cascade; describe one of its stages, which are "
            f"configurations beside it: {', '.join(config.stages)}"
        )
    if options.memory:
        return describe_memory.run(options.config, overrides, options.json)
    if options.sharding:
        report = sharding(config, options.devices, options.slices)
        print(json.dumps(report, indent=2)) if options.json else _print_sharding(report)
        return 0
    report = describe(config)
    if options.json:
        print(json.dumps({"config": options.config, **report}, indent=2))
        return 0

    from rich.console import Console
    from rich.table import Table

    frames, height, width, _ = report["video_shape"]
    table = Table(title=f"{options.config}: {frames} frames of {height} x {width}")
    columns = ("level", "resolution", "channels", "attention", "parameters", "GFLOPs")
    for column in columns:
        table.add_column(column, justify="left" if column == "level" else "right", no_wrap=True)
    for row in report["levels"]:
        table.add_row(
            str(row["level"]),
            row["resolution"],
            str(row["channels"]),
            row["attention"],
            f"{row['parameters']:,}",
            f"{row['flops'] / 1e9:,.2f}",
        )
    table.add_row("total", "", "", "", f"{report['parameters']:,}", f"{report['flops'] / 1e9:,.2f}")
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    print(f"parameters: {report['parameters']:,}")
    return 0


def inventory() -> dict[str, list[str]]:
    """{"configurations", "models", "cascades": names} that --config and --model take."""
    from vdm_jax import config as config_lib
    from vdm_jax.pipelines import model

    return {
        "configurations": config_lib.config_names(),
        "models": model.shipped_names(),
        "cascades": model.shipped_cascades(),
    }


def _listed(report: dict[str, list[str]]) -> str:
    flags = {"configurations": "--config", "models": "--model", "cascades": "--model"}
    return "\n\n".join(
        "\n".join([f"{title} ({flags[title]}=NAME)", *(f"  {name}" for name in names)])
        for title, names in report.items()
    )


def describe(config) -> dict:
    """{"parameters", "flops", "video_shape", "levels": the rows of the table} of a configuration.

    `parameters` is counted from the shapes of the stage's real initialisation.
    """
    import flax.linen as nn
    import jax

    from vdm_jax import systems
    from vdm_jax.training import state

    jax.config.update("jax_platforms", "cpu")  # evaluating shapes wants no accelerator
    stage = systems.build(config)
    levels = stage.cost()
    params = nn.meta.unbox(stage.abstract_params())
    return {
        "parameters": state.count_parameters(params),
        "flops": sum(row.flops for row in levels),
        "video_shape": list(stage.video_shape),
        "levels": [dataclasses.asdict(row) for row in levels],
    }


def sharding(config, devices: int, slices: int = 1) -> dict:
    """{"mesh": sizes of its axes, "parameters": rows of path, shape, spec, note and bytes a device,
    "bytes": of the parameters, "state_bytes": of the whole train state, both a device}.

    Raises MeshError where the mesh does not fit the devices.
    """
    import flax.linen as nn
    import jax

    from vdm_jax import systems
    from vdm_jax.parallel import mesh, sharding

    jax.config.update("jax_platforms", "cpu")
    stage = systems.build(config)
    sizes = mesh.mesh_shape(config.mesh, devices, slices).total
    plans = sharding.plan_parameters(stage, sizes, config.mesh.min_fsdp_size)
    rows = []
    for (path, plan), leaf in zip(
        jax.tree_util.tree_leaves_with_path(plans, is_leaf=sharding.is_plan),
        jax.tree.leaves(nn.meta.unbox(stage.abstract_params())),
        strict=True,
    ):
        cut = sharding.axes_by_dimension(plan.spec)
        parts = math.prod(sizes[axis] for axes in cut for axis in axes)
        rows.append(
            {
                "path": jax.tree_util.keystr(path, simple=True, separator="/"),
                "shape": list(leaf.shape),
                "spec": [list(axes) for axes in cut],
                "bytes": 4 * leaf.size // parts,
                "note": plan.note,
            }
        )
    held = sum(row["bytes"] for row in rows)
    # AdamW's second moment. Muon has one for biases and scales alone, which are few.
    moments = 0.0 if config.train.optimizer == "muon" else 1.0
    moments += 0.5 if config.train.moment_dtype == "bfloat16" else 1.0
    return {
        "mesh": sizes,
        "parameters": rows,
        "bytes": held,
        "state_bytes": int(held * (2 + moments)),
    }


def _print_sharding(report: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    mesh = " x ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    table = Table(title=f"parameters on a mesh of {mesh}")
    for column in ("parameter", "shape", "cut by", "bytes a device"):
        table.add_column(column, justify="left" if column == "parameter" else "right")
    for row in report["parameters"]:
        cut = ", ".join("*".join(axes) or "-" for axes in row["spec"])
        shape = " x ".join(map(str, row["shape"]))
        table.add_row(row["path"], shape, cut, f"{row['bytes']:,}")
    console = Console(width=None if sys.stdout.isatty() else 120, highlight=False)
    console.print(table)
    notes = collections.defaultdict(list)
    for row in report["parameters"]:
        if row["note"]:
            notes[row["note"]].append(row["path"])
    for note, paths in notes.items():
        more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
        console.print(f"{note}: {', '.join(paths[:3])}{more}", soft_wrap=True)
    console.print(
        f"{sum(map(len, notes.values()))} of {len(report['parameters'])} parameters are not cut as "
        f"the first rule says. A device holds {report['bytes'] / 2**20:,.1f} MiB of parameters, "
        f"{report['state_bytes'] / 2**20:,.1f} MiB with moving average and moments.",
        soft_wrap=True,
    )
