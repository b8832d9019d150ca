"""Figures of `benchmarks.run` as a summary and as Markdown, and where they were taken."""

import datetime
import os
import platform
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
WORKS = {
    "train": "training step",
    "denoise": "denoising step",
    "sample": "one sample",
    "encode": "encoding",
    "decode": "decoding",
    "first_clip": "first clip from a cold start",
}


def summarise(results: dict, own: dict[str, str]) -> dict:
    """{work: {side: median, least and greatest seconds, and how much faster our side is}}.

    results: {work: {side: seconds of each step, a list a round}}; own: the side of ours that a side
    is compared with. The speed-up is the median over rounds of the ratio of their medians.
    """
    summary: dict[str, dict[str, Any]] = {}
    for work, sides in results.items():
        summary[work] = {}
        for name, per_round in sides.items():
            if not per_round:
                continue
            flat = [seconds for each in per_round for seconds in each]
            medians = [statistics.median(each) for each in per_round]
            row = {"median_s": statistics.median(flat), "min_s": min(flat), "max_s": max(flat)}
            mine = [statistics.median(each) for each in sides.get(own.get(name, ""), [])]
            if mine and own[name] != name:
                ratios = [a / b for a, b in zip(medians, mine, strict=False)]
                row["speedup"] = statistics.median(ratios)
                row["speedup_min"], row["speedup_max"] = min(ratios), max(ratios)
            summary[work][name] = row
    return summary


def header() -> dict:
    """Date, commit, command and machine, as every report begins."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
        "command": "python -m benchmarks." + " ".join(_command()),
        "machine": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "platform": platform.platform(),
            "load_before": os.getloadavg()[0],
        },
    }


def markdown(report: dict) -> str:
    """The report as Markdown: where, then for each pair what was compared and the figures."""
    machine = report["machine"]
    lines = [
        f"`{report['command']}`, {report['device']}, {machine['cores']} cores "
        f"({machine['processor']}), load {machine['load_before']:.1f} before, commit "
        f"{report['commit']}, {report['date']}; {report['rounds']} rounds by turns. "
        "Medians, least to most in brackets; “faster” is how many times our side of the same dtype "
        "is faster, round by round.",
        "",
    ]
    for pair in report["pairs"]:
        lines += _pair(pair)
    for title, rows in (("Data", report.get("data")), ("Shipped model", report.get("shipped"))):
        if rows:
            lines += [f"### {title}", "", "| what | figure |", "|---|---:|"]
            lines += [f"| {what} | {figure} |" for what, figure in rows.items()] + [""]
    return "\n".join(lines)


def _pair(pair: dict) -> list[str]:
    lines = [
        f"### {pair['name']}: {pair['frames']} frames of {pair['size']} x {pair['size']}, batch "
        f"{pair['batch']}",
        "",
        f"What differs: {pair['difference']}.",
        "",
        "| side | parameters | GFLOP a clip, forward | threads | device | versions |",
        "|---|---:|---:|---:|---|---|",
    ]
    for name, side in pair["sides"].items():
        if "error" in side:
            lines.append(f"| {name} | fails: {cell(side['error'])} | | | | |")
            continue
        versions = ", ".join(f"{package} {found}" for package, found in side["versions"].items())
        lines.append(
            f"| {name} | {side['parameters']:,} | {side['flops'] / 1e9:.2f} | {side['threads']} "
            f"| {side['device']} | Python {side['python']}, {versions} |"
        )
    lines += [
        "",
        "| work | side | seconds | faster | compile s | peak MiB | note |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for work, sides in pair["works"].items():
        for name, row in sides.items():
            lines.append(f"| {WORKS[work]} | {name} | {_row(row)} |")
    return [*lines, ""]


def _row(row: dict) -> str:
    seconds, faster = "", ""
    if "median_s" in row:
        seconds = _seconds(row["median_s"])
        if row["min_s"] < row["max_s"]:
            seconds += f" ({_seconds(row['min_s'])} to {_seconds(row['max_s'])})"
    if "speedup" in row:
        faster = f"{row['speedup']:.2f} x"
        if row["speedup_min"] < row["speedup_max"]:
            faster += f" ({row['speedup_min']:.2f} to {row['speedup_max']:.2f})"
    compile_s = f"{row['compile_s']:.1f}" if row.get("compile_s") else ""
    compile_s += " (from cache)" if compile_s and not row.get("cold", True) else ""
    peak = f"{row['peak_bytes'] / 2**20:,.0f}" if "peak_bytes" in row else ""
    notes = [row["label"]] if row.get("label") else []
    notes += [f"fails: {row['error']}"] if row.get("error") else []
    notes += [f"memory fails: {row['memory_error']}"] if row.get("memory_error") else []
    return f"{seconds} | {faster} | {compile_s} | {peak} | {cell('; '.join(notes))}"


def cell(text: str) -> str:
    """Text that cannot end a cell of a table."""
    return text.replace("|", "/").replace("\n", " ")


def _seconds(value: float) -> str:
    return f"{value:.4f}" if value < 0.1 else f"{value:.3f}" if value < 10 else f"{value:.1f}"


def _command() -> list[str]:
    name = Path(sys.argv[0]).stem
    return [name, *map(shlex.quote, sys.argv[1:])]


def _commit() -> str:
    def git(*arguments: str) -> str:
        try:
            done = subprocess.run(["git", "-C", ROOT, *arguments], capture_output=True, text=True)
        except OSError:
            return ""
        return done.stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD") or "unknown"
    return commit + ("-modified" if git("status", "--porcelain", "vdm_jax", "benchmarks") else "")


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
