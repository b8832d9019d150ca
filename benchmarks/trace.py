"""A profile of compiled steps as device time by kind of operation.

The profiler names kernels; which instruction of the program a kernel belongs to is in the event's
statistics, and what that instruction is, in the text of the compiled program. Where the profile
does not say the instruction, as in a replayed CUDA graph, the kernel's own name decides.
"""

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

CONVOLUTIONS = (
    "convolution forward",
    "convolution, input gradient",
    "convolution, weight gradient",
)
KINDS = (
    *CONVOLUTIONS,
    "convolution",
    "matrix product",
    "attention",
    "normalisation",
    "elementwise",
    "copy, transpose",
    "random numbers",
    "collective",
    "other",
)
# Holds other operations, which are events of their own.
_CONTAINERS = ("while", "call", "conditional", "async-start", "async-done")
_COPIES = ("copy", "transpose", "bitcast", "concatenate", "pad", "slice", "gather", "reshape")

# By the name of a kernel or custom call; the first that is found. cuDNN's and CUTLASS's names.
_BY_NAME = (
    (r"fmha|flash|mha_", "attention"),
    (r"dgrad|convBackwardInput|bwd_data|backward_data", "convolution, input gradient"),
    (r"wgrad|convBackwardFilter|bwd_filter|backward_filter", "convolution, weight gradient"),
    (r"fprop|convForward|convBiasActivation", "convolution forward"),
    (r"nchwToNhwc|nhwcToNchw|nchwToFold|tensorTransform", "copy, transpose"),
    (
        r"implicit_convolve|implicit_gemm|winograd|convolve|cudnn\$conv|__cudnn\$fusion",
        "convolution",
    ),
    (r"nccl|all.?reduce|all.?gather|reduce.?scatter|all.?to.?all", "collective"),
    (r"gemm|cublas|cutlass|nvjet|matmul|\bdot\b|_dot_|dot_fusion", "matrix product"),
    (r"memcpy|memset|transpose|copy|concatenate|pad_|slice", "copy, transpose"),
    (r"rng|threefry|philox", "random numbers"),
    (r"softmax", "attention"),
    (r"norm", "normalisation"),
    (r"fusion|reduce|elementwise|broadcast|convert|wrapped_", "elementwise"),
)
_ATTENTION = re.compile(r"dot_product_attention|BTNH|BNTS|bnqk|softmax|fmha")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Instruction:
    """An instruction of a compiled program.

    opcode: of it. inside: opcodes of what it fuses. target: of a custom call or of a fusion that a
    library runs. op_name: where in the Python program it comes from.
    """

    opcode: str
    inside: frozenset[str] = frozenset()
    target: str = ""
    op_name: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """Time of one kind of operation: ms a step, share of all device time, kernels a step, and
    TFLOP/s where the operations are known."""

    kind: str
    ms: float
    share: float
    kernels: float
    tflops: float | None = None


_LINE = re.compile(r"^\s*(?:ROOT\s+)?%?([\w.\-]+)\s*=\s*.*?\s([a-z][\w\-]*)\(")
_COMPUTATION = re.compile(r"^(?:ENTRY\s+)?%?([\w.\-]+)\s.*\{\s*$")


def instructions(hlo: str) -> dict[str, Instruction]:
    """The instructions of a compiled program by name, from its text."""
    inside: dict[str, set[str]] = defaultdict(set)
    lines: list[tuple[str, str, str]] = []
    computation = ""
    for line in hlo.splitlines():
        if found := _LINE.match(line):
            inside[computation].add(found[2])
            lines.append((found[1], found[2], line))
        elif found := _COMPUTATION.match(line):
            computation = found[1]

    def attribute(pattern: str, line: str) -> str:
        found = re.search(pattern, line)
        return found[1] if found else ""

    return {
        name: Instruction(
            opcode=opcode,
            inside=frozenset(inside[attribute(r"calls=%?([\w.\-]+)", line)]),
            target=attribute(r'custom_call_target="([^"]+)"', line)
            or attribute(r'"kind":"(__[^"]+)"', line),
            op_name=attribute(r'op_name="([^"]+)"', line),
        )
        for name, opcode, line in lines
    }


def kind(kernel: str, instruction: Instruction | None) -> str:
    """The kind of operation of a kernel, one of `KINDS`."""
    if instruction is None:
        return _by_name(kernel) or "other"
    opcodes = instruction.inside | {instruction.opcode}
    if instruction.opcode == "custom-call" or instruction.target:
        found = _by_name(instruction.target) or _by_name(kernel)
    else:
        found = None
    if "convolution" in opcodes or (found or "").startswith("convolution"):
        # A part of the backward pass, but not what rematerialisation runs forward again in it.
        again = "rematted_computation" in instruction.op_name
        backward = "transpose(" in instruction.op_name and not again
        # A gradient may run as a forward convolution, and a fused one does not say of which
        # gradient it is: the kernel's name may.
        for direction in (found, _by_name(kernel)):
            if direction in CONVOLUTIONS and not (backward and direction == CONVOLUTIONS[0]):
                return direction
        return "convolution" if backward else CONVOLUTIONS[0]
    if "dot" in opcodes or found == "matrix product":
        is_attention = _ATTENTION.search(instruction.op_name)
        return "attention" if is_attention else "matrix product"
    if found:
        return found
    if instruction.opcode in _COPIES or (
        instruction.opcode == "fusion" and opcodes <= {"fusion", "parameter", "tuple", *_COPIES}
    ):
        return "copy, transpose"
    if any(part in instruction.opcode for part in ("all-", "reduce-scatter", "collective")):
        return "collective"
    if "rng" in instruction.opcode or "threefry" in instruction.op_name:
        return "random numbers"
    if _ATTENTION.search(instruction.op_name):
        return "attention"
    if re.search(r"norm", instruction.op_name):
        return "normalisation"
    return _by_name(instruction.opcode) or "elementwise"


def _by_name(name: str) -> str | None:
    for pattern, found in _BY_NAME:
        if re.search(pattern, name, re.IGNORECASE):
            return found
    return None


def events(path: Path) -> Iterator[tuple[str, str, float]]:
    """(kernel, instruction or "", nanoseconds) of what devices ran, from an .xplane.pb file."""
    from jax.profiler import ProfileData

    planes = list(ProfileData.from_file(str(path)).planes)
    devices = [plane for plane in planes if plane.name.startswith("/device:")]
    for plane in devices or [plane for plane in planes if plane.name.startswith("/host:CPU")]:
        lines = list(plane.lines)
        if devices:
            # Kernels are on the streams; the other lines show the same time in larger pieces.
            streams = [line for line in lines if line.name.startswith("Stream")]
            lines = streams or [line for line in lines if line.name == "XLA Ops"]
        for line in lines:
            for event in line.events:
                stats = {key: value for key, value in event.stats if key in ("hlo_op", "name")}
                instruction = str(stats.get("hlo_op", ""))
                if instruction or devices:
                    yield event.name, instruction, event.duration_ns


def table(
    directory: Path, hlo: str, steps: int, flops: Mapping[str, int] | None = None
) -> list[Row]:
    """Device time a step by kind, most first, of the profile of `steps` steps below `directory`.

    hlo: text of the compiled program. flops: operations of a step, {"convolution": n}, for the
    TFLOP/s of all convolutions together. Raises FileNotFoundError where there is no profile.
    """
    files = sorted(directory.rglob("*.xplane.pb"))
    if not files:
        raise FileNotFoundError(f"{directory}: no .xplane.pb below")
    known = instructions(hlo)
    times: dict[str, float] = defaultdict(float)
    counts: dict[str, int] = defaultdict(int)
    for path in files:
        for kernel, name, nanoseconds in events(path):
            instruction = known.get(name)
            if instruction is not None and instruction.opcode in _CONTAINERS:
                continue
            found = kind(kernel, instruction)
            times[found] += nanoseconds / 1e6 / steps
            counts[found] += 1
    total = sum(times.values()) or 1.0
    rows = [
        Row(kind=name, ms=ms, share=ms / total, kernels=counts[name] / steps)
        for name, ms in sorted(times.items(), key=lambda item: -item[1])
    ]
    ms = sum(row.ms for row in rows if row.kind.startswith("convolution"))
    if ms and flops and flops.get("convolution"):
        rate = flops["convolution"] / (ms / 1e3) / 1e12
        share = sum(row.share for row in rows if row.kind.startswith("convolution"))
        rows.append(Row(kind="all convolutions", ms=ms, share=share, kernels=0, tflops=rate))
    return rows


def markdown(rows: list[Row]) -> str:
    """The table as Markdown."""
    lines = [
        "| kind | ms a step | share | kernels a step | TFLOP/s |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in rows:
        rate = "" if row.tflops is None else f"{row.tflops:.3g}"
        kernels = f"{row.kernels:.0f}" if row.kernels else ""
        lines.append(f"| {row.kind} | {row.ms:.3f} | {row.share:.1%} | {kernels} | {rate} |")
    return "\n".join(lines) + "\n"
