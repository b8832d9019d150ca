"""Will it fit, and how fast can it be? Compiles for a pod that is not here.

    vdm compile --config=vdm/t2v_large --topology=v5p:4x4x4 [--mesh=fsdp=64]

Compiles the real training update (or, with --what, the real sampler) for every device of the
topology with the compiler that runs there. Reports memory a device against its capacity,
collectives, and the least time that a step can take by the peak of the device, its memory and its
network. Where it does not fit, changes are compiled too, and those that fit are printed. No
accelerator is used: TPUs need the package libtpu (pip install -e ".[compile]").

    vdm compile --pages=pods.md     writes the page of tables docs/pods.md

Results are kept in ~/.cache/vdm_jax/compile by the hash of the lowered program.
"""

import argparse
import json
import sys
from pathlib import Path

from vdm_jax.cli import compile_pages, compiling, parsing


def main(arguments: list[str]) -> int:
    parser = _parser()

    from vdm_jax import config as config_lib

    overrides, arguments = config_lib.split_overrides(arguments)
    options = parser.parse_args(arguments)
    if options.pages:
        page = Path(options.pages)
        return compile_pages.write(page, effort=options.effort, use_cache=not options.no_cache)
    if not options.config or not options.topology:
        parser.error("--config and --topology are needed")
    overrides |= _as_overrides(options)
    request = compiling.Request(
        config=options.config,
        overrides=overrides,
        topology=options.topology,
        slices=options.slices,
        what=options.what,
        effort=options.effort,
    )
    report = compiling.run(
        request, tries=options.tries, use_cache=not options.no_cache, quiet=options.json
    )
    if options.json:
        print(json.dumps(report, indent=2))
    else:
        _print(report)
    return 0 if report["fits"] else 2


def _parser() -> argparse.ArgumentParser:
    parser = parsing.parser("vdm compile", __doc__)
    parser.add_argument("--config", metavar="CONFIG", help="a configuration: a name or a file")
    parser.add_argument(
        "--topology", metavar="NAME", help="v5e:16x16, v5p:4x4x4, v6e:16x16, v4:4x4x4, ..."
    )
    parser.add_argument(
        "--slices",
        type=parsing.positive,
        default=1,
        metavar="N",
        help="slices of that shape (default 1)",
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
        "--batch_size",
        type=parsing.positive,
        metavar="N",
        help="clips (default: the configuration's)",
    )
    parser.add_argument(
        "--remat",
        choices=("none", "dots", "full"),
        metavar="NAME",
        help="default: the configuration's",
    )
    parser.add_argument(
        "--effort",
        default="0",
        choices=tuple(compiling.EFFORT),
        help="effort of the compiler; 0 (default) is several times faster and uses no less memory",
    )
    parser.add_argument(
        "--tries",
        type=int,
        default=3,
        metavar="N",
        help="changes to compile where it does not fit (default 3)",
    )
    parser.add_argument("--json", action="store_true", help="print the report as JSON only")
    parser.add_argument("--no_cache", action="store_true", help="compile anew")
    parser.add_argument(
        "--pages",
        metavar="FILE",
        help="write a page about the paper-scale configurations",
    )
    return parser


def _as_overrides(options) -> dict[str, str]:
    """The flags that are fields of the configuration."""
    from vdm_jax.parallel import mesh

    overrides = {}
    if options.mesh:
        overrides |= {f"mesh.{k}": str(v) for k, v in mesh.parse_mesh(options.mesh).items()}
    if options.batch_size:
        section = "train" if options.what == "train" else "sample"
        overrides[f"{section}.batch_size"] = str(options.batch_size)
    if options.remat:
        overrides["model.remat"] = options.remat
    return overrides


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
        *([("in the host's memory", _gib(host))] if (host := found["host_arguments"]) else []),
        ("roofline: compute", _seconds(found["compute_seconds"])),
        ("roofline: memory", _seconds(found["memory_seconds"]) if traffic else "unknown for GPUs"),
        ("roofline: network", _seconds(found["network_seconds"])),
        (f"a {per} takes", f"{_seconds(found['step_seconds'])} or more: {found['bound']} bound"),
        ("MFU at most", f"{found['mfu']:.0%}"),
    ]
    if report["what"] == "train":
        rows.append(("clips a second at most", f"{found['clips_per_second']:,.1f}"))
        rows += _feeding_rows(report["feeding"])
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


def _feeding_rows(needs: dict) -> list[tuple[str, str]]:
    """What the hosts must read and decode at that speed."""
    from vdm_jax.cli.feeding import MEASURED

    frames, height, width = MEASURED.shape
    hosts = "unknown: the cores of these hosts are"
    if needs["host_cores"]:
        hosts = f"{needs['hosts_needed']}, of {needs['host_cores']} virtual cores each"
    return [
        ("hosts", f"{needs['hosts']}"),
        (
            "a batch of the workers",
            f"{needs['step_bytes'] / 1e9:,.3f} GB a step, {needs['host_bytes'] / 1e9:,.3f} a host",
        ),
        ("clips to decode", f"{needs['host_clips']:,.1f} a second and host"),
        (
            "cores to decode them",
            f"{needs['cores']:,.1f} of all hosts, at {MEASURED.clips_per_second:g} clips of "
            f"{frames} x {height} x {width} a second and core",
        ),
        ("hosts to decode them", hosts),
    ]


def _gib(size: float) -> str:
    return f"{size / 2**30:.2f} GiB"


def _seconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 1 else f"{seconds:,.2f} s"
