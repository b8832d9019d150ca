"""How much of a GPU the paper's network uses: seconds of a training step, and its variants.

    python -m benchmarks.mfu --batches=4,8,16 [--variants=...] [--trace=DIR] [--json=FILE]

Measures the device's bfloat16 peak by square matrix products, then the training step of --config
(the VDM U-Net of UCF101: 16 frames of 64 x 64, 256 channels) on random clips. A variant is a name
of VARIANTS below, or NAME:FIELD=VALUE,VARIABLE=VALUE,trial=NAME given by --variant: fields of the
configuration, variables of the environment (in capitals; XLA_FLAGS may be given several times), and
changes of the code that are on trial (benchmarks/mfu_worker.py). Each is a process of its own with
a time limit; one that fails or takes too long is reported and the next begins.

Model FLOPs are forward plus twice that, of clips and appended images; what rematerialisation does
again is not counted. MFU is their share of the measured peak.
"""

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import report
from benchmarks.mfu_worker import TINY, TRIALS

ROOT = report.ROOT
_XLA = "XLA_FLAGS=--xla_gpu_"
VARIANTS = {
    "as-configured": "",
    "remat-none": "model.remat=none",
    "remat-dots": "model.remat=dots",
    "remat-full": "model.remat=full",
    "clips-only": "data.image_frames=0",
    "dropout-0": "model.dropout=0.0",
    "cudnn-attention": "trial=cudnn_attention",
    "norm-bf16": "trial=norm_bf16",
    "float32": "model.dtype=float32",
    "accumulate-2": "train.accumulate=2",
    "latency-hiding": f"{_XLA}enable_latency_hiding_scheduler=true",
    "no-triton-gemm": f"{_XLA}enable_triton_gemm=false",
    "no-command-buffers": f"{_XLA}enable_command_buffer=",
    "autotune-0": f"{_XLA}autotune_level=0",
    "conv-nhwc": f"{_XLA}force_conv_nhwc=true",
    "cudnn-fusion": f"{_XLA}cudnn_gemm_fusion_level=3",
}


def parse_variant(text: str) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """(overrides, environment, trials) of "FIELD=VALUE,VARIABLE=VALUE,trial=NAME".

    Raises ValueError for a part that is none of these, and for an unknown trial.
    """
    overrides, variables, trials = {}, {}, []
    for part in _parts(text):
        name, equals, value = part.partition("=")
        if not equals:
            raise ValueError(f"variant {part!r}: FIELD=VALUE, VARIABLE=VALUE or trial=NAME")
        if name == "trial":
            if value not in TRIALS:
                raise ValueError(f"trial={value}: allowed are {', '.join(TRIALS)}")
            trials.append(value)
        elif name.isupper():
            variables[name] = f"{variables[name]} {value}" if name in variables else value
        else:
            overrides[name] = value
    return overrides, variables, trials


def _parts(text: str) -> list[str]:
    """Split at commas outside of brackets, so that tuples can be values."""
    parts, depth = [""], 0
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts if part.strip()]


def run_worker(arguments: list[str], variables: dict[str, str], limit: float) -> dict:
    """The worker's result, or {"error": why there is none}."""
    command = [sys.executable, "-m", "benchmarks.mfu_worker", *arguments]
    flags = " ".join(filter(None, [os.environ.get("XLA_FLAGS"), variables.get("XLA_FLAGS")]))
    environment = {**os.environ, **variables, **({"XLA_FLAGS": flags} if flags else {})}
    with tempfile.TemporaryFile("w+") as errors:
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                timeout=limit,
            )
        except subprocess.TimeoutExpired:
            return {"error": f"took more than {limit:g} s"}
        if done.returncode == 0 and done.stdout.strip():
            return json.loads(done.stdout.strip().splitlines()[-1])
        errors.seek(0)
        lines = [line.strip() for line in errors.read().splitlines() if line.strip()]
    telling = [line for line in lines if "Error" in line or "RESOURCE_EXHAUSTED" in line]
    last = (telling or lines or ["no message"])[-1]
    return {"error": f"status {done.returncode}: {last[:200]}", "stderr": lines[-15:]}


def compile_all(
    jobs: list[tuple[str, int, list[str], dict[str, str]]], platform: dict[str, str], limit: float
) -> int:
    """Compiles every variant, all at once; 0 where none failed, as an exit status."""

    def compile_one(job) -> bool:
        name, batch, worker, variables = job
        row = run_worker(["--what=compile", *worker], {**platform, **variables}, limit)
        said = row.get("error") or f"compiled in {row['compile_s']:.1f} s"
        print(f"{name}, batch {batch}: {said}", flush=True)
        for line in row.get("stderr", []):
            print(f"    {line}", flush=True)
        return "error" in row

    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        return int(any(pool.map(compile_one, jobs)))


def describe(name: str, row: dict, peak: float) -> str:
    """A result as one line; adds what follows from the measured peak to `row`."""
    if "error" in row:
        return f"{name}: fails: {row['error']}"
    flops = row["batch"] * row["flops_per_clip"] / row["seconds"]
    row["clips_per_s"] = row["batch"] / row["seconds"]
    row["model_tflops"] = flops / 1e12
    row["mfu"] = flops / peak
    published = row.get("published_flops_per_s")
    row["mfu_published"] = flops / published if published else None
    of_published = f", {row['mfu_published']:.1%} of the published" if published else ""
    return (
        f"{name}, batch {row['batch']}: {row['seconds']:.4f} s a step "
        f"(blocking {row['blocking_s'][0]:.4f}), {row['clips_per_s']:.2f} clips/s, "
        f"{row['model_tflops']:.4g} model TFLOP/s, MFU {row['mfu']:.1%}{of_published}, peak "
        f"{row['peak_bytes'] / 2**30:.2f} GiB, compile {row['compile_s']:.1f} s"
    )


def markdown(result: dict) -> str:
    """All results as Markdown."""
    peak = result["peak"]
    lines = [
        f"`{result['command']}`, commit {result['commit']}, {result['date']}; {result['config']}; "
        f"measured bfloat16 peak {peak['flops_per_s'] / 1e12:.4g} TFLOP/s.",
        "",
        "| variant | batch | s a step | clips/s | model TFLOP/s | MFU | peak GiB | compile s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in result["steps"]:
        if "error" in row:
            lines.append(
                f"| {row['variant']} | {row['batch']} | fails: {report.cell(row['error'])} "
                "| | | | | |"
            )
            continue
        lines.append(
            f"| {row['variant']} | {row['batch']} | {row['seconds']:.4f} | "
            f"{row['clips_per_s']:.2f} | {row['model_tflops']:.4g} | {row['mfu']:.1%} | "
            f"{row['peak_bytes'] / 2**30:.2f} | {row['compile_s']:.1f} |"
        )
    for row in result["steps"]:
        if "profile_markdown" in row:
            title = f"Device time, {row['variant']}, batch {row['batch']}"
            lines += ["", f"### {title}", "", row["profile_markdown"].rstrip()]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.mfu",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--config", default="configs/vdm/ucf101.py", metavar="FILE")
    parser.add_argument("--batches", default="4,8,16", metavar="N,N", help="default 4,8,16")
    parser.add_argument(
        "--variants",
        default="as-configured",
        metavar="NAMES",
        help=f"of {', '.join(VARIANTS)}; default as-configured",
    )
    parser.add_argument(
        "--variant", action="append", default=[], metavar="NAME:CHANGES", help="a further one"
    )
    parser.add_argument("--device", choices=("cpu", "gpu"), default="gpu", help="default gpu")
    parser.add_argument("--steps", type=int, default=10, metavar="N", help="timed, default 10")
    parser.add_argument("--limit", type=float, default=300, metavar="S", help="of a variant (300)")
    parser.add_argument("--total", type=float, metavar="S", help="begin no variant after so long")
    parser.add_argument("--cache_dir", metavar="DIR", help="of compiled programs, kept")
    parser.add_argument(
        "--compile_only",
        action="store_true",
        help="fill --cache_dir, all variants at once, and measure nothing: for a run after it",
    )
    parser.add_argument("--trace", metavar="DIR", help="also profile 3 steps of each variant")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write FILE and FILE.md")
    parser.add_argument("--peak", type=float, metavar="TFLOPS", help="not measured again")
    parser.add_argument("--tiny", action="store_true", help="a tiny network: does it run?")
    options = parser.parse_args(arguments)
    try:
        changes = {name: VARIANTS[name] for name in options.variants.split(",") if name}
        changes |= dict(text.split(":", 1) for text in options.variant)
        variants = {name: parse_variant(text) for name, text in changes.items()}
    except KeyError as error:
        parser.error(f"--variants: {error} unknown; allowed: {', '.join(VARIANTS)}")
    except ValueError as error:
        parser.error(str(error))

    if options.compile_only and not options.cache_dir:
        parser.error("--compile_only: needs --cache_dir, where the programs are kept")

    started = time.monotonic()
    common = [f"--device={options.device}"]
    if options.cache_dir:
        common.append(f"--cache={Path(options.cache_dir).resolve()}")
    platform = {"JAX_PLATFORMS": "cuda" if options.device == "gpu" else "cpu"}
    jobs = []
    for name, (overrides, variables, trials) in variants.items():
        for batch in options.batches.split(","):
            fields = {**(TINY if options.tiny else {}), **overrides, "train.batch_size": batch}
            worker = [*common, f"--config={options.config}", f"--overrides={json.dumps(fields)}"]
            worker += ["--trials", *trials] if trials else []
            jobs.append((name, int(batch), worker, variables))
    if options.compile_only:
        # Beside each other, so none may take the card's memory for itself.
        return compile_all(
            jobs, {**platform, "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}, options.limit
        )

    platform["XLA_PYTHON_CLIENT_MEM_FRACTION"] = "0.92"  # the whole card is ours
    result = report.header() | {"config": options.config, "steps": []}
    if options.peak:
        result["peak"] = {"flops_per_s": options.peak * 1e12}
    else:
        sizes = ["--sizes", *(("128", "256") if options.tiny else ("4096", "8192", "16384"))]
        result["peak"] = run_worker(["--what=peak", *common, *sizes], platform, options.limit)
        if "error" in result["peak"]:
            print(f"peak fails: {result['peak']['error']}")
            return 1
    peak = result["peak"]["flops_per_s"]
    print(f"bfloat16 peak: {peak / 1e12:.4g} TFLOP/s {result['peak']}", flush=True)
    for name, batch, worker, variables in jobs:
        row: dict = {"variant": name, "batch": batch}
        if options.total and time.monotonic() - started > options.total:
            row["error"] = f"not begun: {options.total:g} s were over"
        else:
            worker = ["--what=step", *worker, f"--steps={options.steps}"]
            if options.trace:
                worker.append(f"--trace={Path(options.trace).resolve() / f'{name}-{batch}'}")
            row |= run_worker(worker, {**platform, **variables}, options.limit)
        result["steps"].append(row)
        print(describe(name, row, peak), flush=True)
        if "profile_markdown" in row:
            print(row["profile_markdown"], flush=True)
        for line in row.get("stderr", []):
            print(f"    {line}", flush=True)
        if options.json:
            options.json.parent.mkdir(parents=True, exist_ok=True)
            options.json.write_text(json.dumps(result, indent=1) + "\n")
            options.json.with_suffix(".md").write_text(markdown(result))
    print("\n" + markdown(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
