"""Published networks in their real sizes against their originals, on random weights.

    python -m benchmarks.parity --peer_python=PYTHON [--only=sd15,taesd] [--json=FILE]

PYTHON has torch, diffusers, transformers and safetensors. For each network a process of PYTHON
draws random weights, saves them by `save_pretrained`, and writes an input and its output in
float32. A process of this Python reads the folder by the library's reader, which is timed and whose
memory is measured, and computes the same. The folder, up to 6 GB, lies in the folder for temporary
files (TMPDIR) and is removed.

Inputs are small, because widths and depths are what can be wrong. Our side compiles at XLA's lowest
level of optimisation, which is quicker than optimising what runs once; XLA_FLAGS adds to that.

The status is 1 if a network fails or differs by more than 1e-4 of the largest value.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import report, serving
from benchmarks.parity_networks import NETWORKS, Published

TOLERANCE = 1e-4  # of the largest value
_FLAGS = "--xla_backend_optimization_level=0"


def choose(names: str) -> list[Published]:
    """The networks of a list with commas; all for an empty one. Raises ValueError."""
    by_name = {row.name: row for row in NETWORKS}
    wanted = [name for name in names.split(",") if name] or list(by_name)
    if unknown := [name for name in wanted if name not in by_name]:
        raise ValueError(f"--only={','.join(unknown)}: allowed are {', '.join(by_name)}")
    return [by_name[name] for name in wanted]


def measure(row: Published, peer: Sequence[str], limit: float) -> dict:
    """Both sides of a comparison, or {"error": why there is none}.

    peer: the command of the originals' process. limit: seconds that a side may take.
    """
    variables = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": " ".join(filter(None, [_FLAGS, os.environ.get("XLA_FLAGS")])),
    }
    ours = [sys.executable, "-m", "benchmarks.parity_ours"]
    try:
        with tempfile.TemporaryDirectory(prefix="parity-") as folder:
            theirs = _ask(peer, {}, "write", limit, name=row.name, folder=folder)
            found = _ask(ours, variables, "compare", limit, kind=row.kind, folder=folder)
    except serving.WorkerError as error:
        return {"error": str(error)}
    if found["parameters"] != theirs["parameters"]:
        return {
            "error": f"{found['parameters']:,} parameters, the original has "
            f"{theirs['parameters']:,}"
        }
    return {**found, "versions": {**found["versions"], **theirs["versions"]}}


def _ask(command: Sequence[str], variables: dict, operation: str, limit: float, **values) -> dict:
    """The answer of a process of its own, whose memory is free afterwards. Raises WorkerError."""
    worker = serving.Worker(operation, list(command), variables)
    try:
        return worker.ask(operation, limit=limit, **values)
    finally:
        worker.close(kill=True)


def is_right(result: dict) -> bool:
    """Whether all outputs are within TOLERANCE."""
    return "error" not in result and max(result["differences"].values()) <= TOLERANCE


def table(results: dict[str, dict]) -> list[str]:
    """Lines of Markdown. results: by the networks' names."""
    lines = [
        "| network | parameters | tensors | input | largest difference | file, MB | load, s "
        "| peak, MB | peak / file |",
        "|---|---:|---:|---|---:|---:|---:|---:|---:|",
    ]
    for row in NETWORKS:
        if row.name in results:
            lines.append(f"| {row.title} | {_cells(row, results[row.name])} |")
    return lines


def _cells(row: Published, result: dict) -> str:
    if "error" in result:
        return f"fails: {report.cell(result['error'])} | | | | | | |"
    largest = max(result["differences"].values())
    peak = result["load_bytes"] / result["file_bytes"]
    return (
        f"{result['parameters']:,} | {result['tensors']:,} | {row.input} | {largest:.1e} "
        f"| {result['file_bytes'] / 1e6:,.0f} | {result['load_seconds']:.1f} "
        f"| {result['load_bytes'] / 1e6:,.0f} | {peak:.2f}"
    )


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--peer_python", required=True, metavar="PYTHON", help="has the originals' packages"
    )
    parser.add_argument(
        "--only", default="", metavar="NAME,…", help=", ".join(row.name for row in NETWORKS)
    )
    parser.add_argument("--json", metavar="FILE", help="where the figures go, after each network")
    parser.add_argument(
        "--limit", type=float, default=1800, help="seconds that a side may take (default 1800)"
    )
    options = parser.parse_args(arguments)
    try:
        options.networks = choose(options.only)
    except ValueError as error:
        parser.error(str(error))
    return options


def main() -> int:
    options = parse()
    where, results = report.header(), {}
    peer = [options.peer_python, "-m", "benchmarks.peers.originals"]
    for row in options.networks:
        print(f"{row.name} …", file=sys.stderr, flush=True)
        results[row.name] = measure(row, peer, options.limit)
        print("\n".join(table({row.name: results[row.name]})[2:]), file=sys.stderr, flush=True)
        if options.json:
            content = json.dumps({**where, "networks": results}, indent=1)
            Path(options.json).write_text(content, encoding="utf-8")
    versions = next((r["versions"] for r in results.values() if "versions" in r), {})
    print(
        f"`{where['command']}`, commit {where['commit']}, {where['date']}, "
        f"{', '.join(f'{package} {version}' for package, version in versions.items())}\n"
    )
    print("\n".join(table(results)))
    return 0 if all(map(is_right, results.values())) else 1


if __name__ == "__main__":
    sys.exit(main())
